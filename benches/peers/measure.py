"""Measures all supervisors in turn and writes results.json.

    measure.py PLACE [--only NAME ..] [--rounds N] [--patience SECONDS] [--into FILE]
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import procfs
from figures import is_undisturbed
from load import Load
from peers import HANG_TIMEOUT, HERE, PEERS, Peer
from service import WORKERS, Line, Service

# Seconds.
START_LIMIT = 60
REPLACEMENT_LIMIT = 8
SETTLE = 3
IDLE = 10
HANG_LIMIT = 3 * HANG_TIMEOUT
ORPHANS_AFTER = (3, 20)
CRASH_LOOP = 6
NGINX_LIFE = 0.1
ROLLS = 8
ROLL_PERIOD = 0.25
ROLL_LIMIT = 30
KILLS = 2
# If other work on the machine disturbs some starts, at most this many times the wanted number of starts are made.
MORE = 3

# The exit status if some samples are missing and everything else went well.
SAMPLES_MISSING = 3

CRATES = ("taskfork", "prefork", "supertrees")

Results = dict[str, dict]


class Measurement:
    def __init__(self, place: Path, peers: list[Peer], patience: float):
        self.place = place
        self.peers = peers
        self.patience = patience
        self.failures: list[str] = []
        self.results: Results = {peer.name: {} for peer in peers}
        self._numbers = count(1)

    @contextmanager
    def alone(self, peer: Peer, **more):
        """Runs the service of one supervisor, and kills all of its processes at the end."""
        procfs.wait_for_idle_machine(self.patience)
        service = Service(peer, self.place, next(self._numbers), **more)
        try:
            yield service
        finally:
            procfs.end_everything()
            service.close()

    @contextmanager
    def together(self, peers: list[Peer], **more):
        procfs.wait_for_idle_machine(self.patience)
        services = [Service(peer, self.place, next(self._numbers), **more) for peer in peers]
        try:
            yield [service for service in services if self.attempt(begun, service)]
        finally:
            procfs.end_everything()
            for service in services:
                service.close()

    def attempt(self, what: Callable, *arguments: object) -> object:
        try:
            return what(*arguments)
        except NotBegun as failure:
            self.failures.append(str(failure))
            log(str(failure))
            return None

    def append(self, peer: Peer, key: str, value: object) -> None:
        self.results[peer.name].setdefault(key, []).append(value)

    # Start-up, memory, replacement and TERM are measured for one supervisor at a time, several times.

    def life(self, peer: Peer) -> None:
        began, others_s = time.monotonic(), procfs.cpu_of_others_s()
        with self.alone(peer) as service:
            first = begun(service)
            found = {"startup_ms": (max(line.ns for line in first) - service.started_ns) / 1e6}
            time.sleep(0.5)
            found["memory_kib"] = memory(service)
            if "not_replaced" not in self.results[peer.name]:
                found["replacement_ms"] = self.kill_workers(peer, service)
            time.sleep(0.5)
            if len(service.workers()) == WORKERS:
                found["term"] = ask_to_stop(service)
        others_s = procfs.cpu_of_others_s() - others_s
        found["others_share"] = others_s / (time.monotonic() - began) / os.cpu_count()
        self.append(peer, "lives", found)

    def kill_workers(self, peer: Peer, service: Service) -> list[float]:
        taken_ms = []
        for pid, _ in service.workers()[:KILLS]:
            # Some supervisors check for missing workers twice a second. The kill comes at a random time between checks.
            time.sleep(random.uniform(0.2, 1.2))
            killed = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            new = service.next_lines(1, REPLACEMENT_LIMIT)
            if not new:
                service.has_ended()
                left = len(service.workers())
                self.results[peer.name]["not_replaced"] = {"parent_status": service.status, "left": left}
                break
            taken_ms.append((new[0].ns - killed) / 1e6)
        return taken_ms

    def lacks_lives(self, peer: Peer, rounds: int) -> bool:
        return len([life for life in self.results[peer.name].get("lives", []) if is_undisturbed(life)]) < rounds

    # The idle parent, and kill -9 of the parent, are measured for all supervisors at once, because they only wait.

    def idle(self) -> None:
        with self.together(self.peers) as services:
            self.idle_parents(services, "idle")
            trees = [(service, service.workers(), service.others()) for service in services]
            for service in services:
                service.signal(signal.SIGKILL)
            killed = time.monotonic()
            for after in ORPHANS_AFTER:
                time.sleep(max(killed + after - time.monotonic(), 0))
                for service, *tree in trees:
                    self.append(service.peer, "orphans", {"after_s": after, **left(*tree)})

    def idle_parents(self, services: list[Service], key: str) -> None:
        time.sleep(SETTLE)
        before = [(procfs.wakeups(service.pid), procfs.cpu_ns(service.pid)) for service in services]
        began = time.monotonic()
        time.sleep(IDLE)
        for service, (wakeups, cpu_ns) in zip(services, before):
            seconds = time.monotonic() - began
            wakeups_per_s = (procfs.wakeups(service.pid) - wakeups) / seconds
            cpu_us_per_s = (procfs.cpu_ns(service.pid) - cpu_ns) / 1e3 / seconds
            found = {"wakeups_per_s": wakeups_per_s, "cpu_us_per_s": cpu_us_per_s}
            self.results[service.peer.name][key] = found

    def hang(self) -> None:
        with self.together(self.peers, watched=True) as services:
            self.idle_parents(services, "idle_watched")
            for service in services:
                service.skip_lines()
                os.kill(service.workers()[0][0], signal.SIGSTOP)
            stopped = time.monotonic_ns()
            waiting = list(services)
            while waiting and time.monotonic_ns() - stopped < HANG_LIMIT * 1e9:
                for service in list(waiting):
                    if new := service.next_lines(1, 0):
                        self.results[service.peer.name]["hang_s"] = (new[0].ns - stopped) / 1e9
                        waiting.remove(service)
                time.sleep(0.02)
            for service in waiting:
                self.results[service.peer.name]["hang_s"] = None

    # Workers that fail again and again are measured for one supervisor at a time.

    def crash_loop(self, peer: Peer, fate: str) -> None:
        if fate == "broken" and peer.worker_title:
            return  # nginx's workers run no code of ours that could fail.
        with self.alone(peer, fate="" if peer.worker_title else fate) as service:
            service.next_lines(1, START_LIMIT)
            end = time.monotonic() + CRASH_LOOP
            while time.monotonic() < end and not service.has_ended():
                if peer.worker_title:
                    kill_all_workers(service, NGINX_LIFE)
                    service.skip_lines()
                service.next_lines(1, end - time.monotonic())
            found = {"starts": len(service.lines), "status": service.status}
            if service.status is not None:
                time.sleep(0.5)
                found["left"] = len(service.workers())
            self.results[peer.name][fate] = found

    # Rolling restarts by HUP are measured under load, for one supervisor at a time.

    def roll(self, peer: Peer, patient: bool) -> None:
        if not peer.reloads:
            return
        with self.alone(peer) as service:
            begun(service)
            time.sleep(1)
            with Load(service.port) as load:
                time.sleep(0.5)
                rolls = roll_patiently(service) if patient else roll_impatiently(service)
                time.sleep(2)
            found = {"rolls": rolls, "replaced": len(service.lines) - WORKERS, "requests": load.counts()}
            found |= {"ended": service.has_ended(), "workers": len(service.workers())}
            self.results[peer.name]["roll_patient" if patient else "roll_impatient"] = found


class NotBegun(Exception):
    """The workers did not start. This sample is left out, and all other samples are still measured."""


def begun(service: Service) -> list[Line]:
    lines = service.next_lines(WORKERS, START_LIMIT)
    if len(lines) < WORKERS:
        raise NotBegun(f"{service.peer.name}: {len(lines)} of {WORKERS} workers began, see runs/{service.directory.name}/log")
    return lines


def memory(service: Service) -> dict:
    workers = [procfs.memory_kib(pid) for pid, _ in service.workers()]
    parent, others = procfs.memory_kib(service.pid), [procfs.memory_kib(pid) for pid, _ in service.others()]
    return {
        "parent_pss": parent[0],
        "parent_private": parent[1],
        "worker_pss": statistics.median(pss for pss, _ in workers),
        "worker_private": statistics.median(private for _, private in workers),
        "all_pss": sum(pss for pss, _ in [parent, *workers, *others]),
    }


def ask_to_stop(service: Service) -> dict:
    tree = service.workers(), service.others()
    asked = time.monotonic()
    service.signal(signal.SIGTERM)
    service.wait_for_end(ORPHANS_AFTER[0])
    found = {"status": service.status, "seconds": time.monotonic() - asked}
    while any(left(*tree).values()) and time.monotonic() < asked + ORPHANS_AFTER[0]:
        time.sleep(0.01)
    return found | left(*tree)


def left(workers: list, others: list) -> dict:
    alive = [sum(map(procfs.is_alive, processes)) for processes in (workers, others)]
    return {"workers": alive[0], "others": alive[1]}


def kill_all_workers(service: Service, after_seconds: float) -> None:
    """Waits for this time, and then kills all workers. nginx's workers cannot exit by themselves as the others do."""
    time.sleep(after_seconds)
    for pid, _ in service.workers():
        os.kill(pid, signal.SIGKILL)


def roll_impatiently(service: Service) -> int:
    rolls = int(ROLLS / ROLL_PERIOD)
    for _ in range(rolls):
        service.signal(signal.SIGHUP)
        wait_watchfully(service, ROLL_PERIOD)
    return rolls


def roll_patiently(service: Service) -> int:
    """Sends the next HUP when no worker from before the last HUP is left."""
    began, rolls = time.monotonic(), 0
    while time.monotonic() < began + ROLLS:
        old = service.workers()
        service.signal(signal.SIGHUP)
        wait_watchfully(service, ROLL_PERIOD)
        limit = time.monotonic() + ROLL_LIMIT
        while any(map(procfs.is_alive, old)) or len(service.workers()) < WORKERS:
            if time.monotonic() > limit:
                return rolls
            wait_watchfully(service, 0.01)
        rolls += 1
    return rolls


def wait_watchfully(service: Service, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (rest := end - time.monotonic()) > 0:
        service.update()
        time.sleep(min(rest, 0.005))


def about(place: Path) -> dict:
    def output(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip()

    pinned = (HERE / "requirements.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in pinned if "==" in line)
    versions["nginx"] = output(f"{place}/nginx", "-v").rpartition("/")[2]
    crates = output(
        "cargo", "tree", "--offline", "--depth=1", "--prefix=none", "--manifest-path", f"{place}/crates/Cargo.toml"
    )
    crates = [line.split() for line in crates.splitlines()]
    versions |= {words[0]: words[1].removeprefix("v") for words in crates if words[0] in CRATES}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "rustc": output("rustc", "--version"),
        "tcp_migrate_req": Path("/proc/sys/net/ipv4/tcp_migrate_req").read_text().strip(),
        "versions": {name.lower(): version for name, version in versions.items()},
    }


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def measure(place: Path, peers: list[Peer], rounds: int, patience: float) -> dict:
    measurement = Measurement(place, peers, patience)
    for nth in range(MORE * rounds):
        for peer in [peer for peer in peers if measurement.lacks_lives(peer, rounds)]:
            log(f"start-up, replacement, stop: {peer.name} (round {nth + 1})")
            measurement.attempt(measurement.life, peer)
    log("idle, and kill -9 of the parent")
    measurement.idle()
    log("a hung worker")
    measurement.hang()
    for peer in peers:
        log(f"crash loops: {peer.name}")
        measurement.crash_loop(peer, "broken")
        measurement.crash_loop(peer, "dies")
    for patient in (True, False):
        for peer in peers:
            log(f"rolling restart, {'HUP after HUP' if patient else 'HUP every 250 ms'}: {peer.name}")
            measurement.attempt(measurement.roll, peer, patient)
    machine = {**about(place), "failures": measurement.failures}
    return {"about": machine, "peers": measurement.results}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures all supervisors in turn.")
    parser.add_argument("place", type=lambda place: Path(place).resolve(), help="the PLACE of `run`")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure only these supervisors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=3, metavar="SECONDS", help="wait for an idle machine")
    parser.add_argument("--into", type=lambda file: Path(file).resolve(), default=HERE / "results.json", metavar="FILE")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    procfs.adopt_orphans()
    os.chdir(args.place)
    shutil.rmtree("runs", ignore_errors=True)
    peers = [peer for peer in PEERS if not args.only or peer.name in args.only]
    try:
        results = measure(args.place, peers, args.rounds, args.patience)
    finally:
        procfs.end_everything()
    args.into.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(SAMPLES_MISSING if results["about"]["failures"] else 0)


if __name__ == "__main__":
    main()
