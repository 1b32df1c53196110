"""Compares upgrades to a new version of the program under load, and writes upgrades.json and upgrades.md.

    upgrades.py PLACE [--only NAME ..] [--times N]

`run` calls it after measure.py. It leaves out a supervisor that is not installed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import procfs
from load import Load
from peers import HERE, Peer
from service import WORKERS, Service

# Seconds.
LIMIT = 20
# The time after which a script that checks nothing continues.
BLIND_WAIT = 2

Step = tuple[str, Callable[[], bool]]


@dataclass(frozen=True)
class Kind:
    """A supervisor, how to deploy a version of its program, and the signals of an upgrade."""

    peer: Peer
    # Writes the version with this number into the directory. A broken version cannot start.
    deploy: Callable[[Path, Path, int, bool], None]
    # The signals after USR2 that the operator sends to the old parent when the new workers run.
    signals: tuple[signal.Signals, ...]
    # Whether the same process goes on as the parent.
    keeps_pid: bool = False
    # Seconds after an upgrade in which the new parent ignores the next USR2. (gunicorn looks for the old one once a second.)
    deaf: float = 0
    # Whether the service must run in the background. nginx ignores USR2 in the foreground.
    is_daemon: bool = False


class Deployed(Service):
    def __init__(self, kind: Kind, place: Path, number: int):
        self.kind, self.place = kind, place
        super().__init__(kind.peer, place, number)
        if kind.is_daemon:
            self._follow_daemon()
        self.parent = self.pid

    def _follow_daemon(self) -> None:
        """Uses the process in the pid file as the parent. The started process ends."""
        if not self.wait_for_end(LIMIT):
            raise Failed("the end of the started process")
        os.close(self._pidfd)
        self.pid, self.status = int((self.directory / "nginx.pid").read_text()), None
        self._pidfd = os.pidfd_open(self.pid)

    def _prepare(self, directory: Path) -> None:
        super()._prepare(directory)
        self.kind.deploy(self.place, directory, 0, False)
        if self.kind.is_daemon:
            configuration = directory / "nginx.conf"
            configuration.write_text(configuration.read_text().replace("daemon off;", "daemon on;"))

    def next_parent(self) -> int | None:
        """Returns the pid of the new parent beside the old one, or None if there is none."""
        candidates = procfs.children(self.parent) + procfs.children(os.getpid())
        known = {line.pid for line in self.lines}
        parents = [pid for pid in candidates if pid not in known and pid != self.parent and procfs.children(pid)]
        return parents[-1] if parents else None

    def workers_of(self, parent: int) -> list[int]:
        self.update()
        return [pid for pid in procfs.children(parent) if pid not in (self.parent, self.pid) and not procfs.children(pid)]


def replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.chmod(mode)
    new.rename(path)


def deploy_program(source: str) -> Callable[[Path, Path, int, bool], None]:
    """Returns a function that deploys a copy of this program, or /bin/false if the version is to be broken."""

    def deploy(place: Path, directory: Path, version: int, broken: bool) -> None:
        program = Path("/bin/false") if broken else place / source
        replace(directory / "program", program.read_bytes() + b"\0" * (version % 2), 0o755)

    return deploy


def deploy_wsgi(_: Path, directory: Path, version: int, broken: bool) -> None:
    text = (HERE / "programs" / "wsgi.py").read_text()
    fault = 'raise RuntimeError("this version cannot start")\n' if broken else ""
    replace(directory / "wsgi.py", f"{text}\nVERSION = {version}\n{fault}".encode())


def deploy_rack(_: Path, directory: Path, version: int, broken: bool) -> None:
    answer = "run ->(env) { [200, {'Content-Length' => '3'}, [\"ok\\n\"]] }\n"
    fault = "raise 'this version cannot start'\n" if broken else ""
    replace(directory / "config.ru", f"# version {version}\n{fault}{answer}".encode())
    shutil.copy(HERE / "programs" / "unicorn.rb", directory / "unicorn.rb")


def kinds(place: Path) -> Iterator[Kind]:
    crate = "crates/target/release/with-taskfork"
    program = ["{directory}/program"]
    yield Kind(Peer("taskfork", program), deploy_program(crate), (), keeps_pid=True)
    spawn = {"PEERS_BACKEND": "spawn"}
    yield Kind(Peer("taskfork, spawn", program, env=spawn), deploy_program(crate), (), keeps_pid=True)
    nginx = [*program, "-e", "stderr", "-p", "{directory}", "-c", "{directory}/nginx.conf"]
    title = "nginx: worker process"
    signals = (signal.SIGWINCH, signal.SIGQUIT)
    yield Kind(Peer("nginx", nginx, worker_title=title), deploy_program("nginx"), signals, is_daemon=True)
    gunicorn = ["{place}/venv/bin/gunicorn", "--workers", "4", "--bind", "127.0.0.1:{port}", "wsgi:app"]
    path = {"PYTHONPATH": "{directory}:" + str(HERE / "programs")}
    yield Kind(Peer("gunicorn", gunicorn, env=path), deploy_wsgi, (signal.SIGTERM,), deaf=2)
    if unicorn := shutil.which("unicorn"):
        command = [unicorn, "-c", "{directory}/unicorn.rb", "-l", "127.0.0.1:{port}", "{directory}/config.ru"]
        yield Kind(Peer("unicorn", command), deploy_rack, (signal.SIGQUIT,))


class Failed(Exception):
    pass


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            raise Failed(what)
        time.sleep(0.01)


def alive(pids: list[int]) -> bool:
    return any(procfs.identity(pid) for pid in pids)


def upgrade(service: Deployed, version: int) -> None:
    """Upgrades as a careful operator does, who checks each step."""
    kind, old = service.kind, service.parent
    before = service.workers_of(old)
    kind.deploy(service.place, service.directory, version, False)
    os.kill(old, signal.SIGUSR2)
    if not kind.keeps_pid:
        wait_until("the new parent", lambda: service.next_parent() is not None)
        new = service.next_parent()
        wait_until("the new workers", lambda: len(service.workers_of(new)) >= WORKERS and is_up(service, new))
        for number in kind.signals:
            os.kill(old, number)
            if number == signal.SIGWINCH:
                wait_until("the end of the old workers", lambda: not alive(before))
        wait_until("the end of the old parent", lambda: procfs.identity(old) is None)
        service.parent = new
    is_done = lambda: not alive(before) and len(service.workers_of(service.parent)) == WORKERS
    wait_until("the end of the old workers", is_done)
    watch(service, kind.deaf)


def is_up(service: Deployed, parent: int) -> bool:
    """Returns whether the workers of this parent have begun to run their code."""
    title = service.peer.worker_title
    workers = service.workers_of(parent)
    if title:
        return all(procfs.title(pid).startswith(title) for pid in workers)
    begun = {line.pid for line in service.lines}
    return sum(pid in begun for pid in workers) >= WORKERS


def upgrade_blindly(service: Deployed, version: int, broken: bool) -> None:
    """Upgrades as a script does that waits for a fixed time and checks nothing."""
    service.kind.deploy(service.place, service.directory, version, broken)
    old = service.parent
    os.kill(old, signal.SIGUSR2)
    for number in service.kind.signals:
        watch(service, BLIND_WAIT)
        if procfs.identity(old):
            os.kill(old, number)
    watch(service, BLIND_WAIT)


def watch(service: Deployed, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        service.update()
        procfs.reap_orphans(service.pid)
        time.sleep(0.01)


def measure(kind: Kind, place: Path, number: int, times: int) -> dict:
    found: dict = {"signals": ["USR2", *(number.name.removeprefix("SIG") for number in kind.signals)]}
    with running(kind, place, number) as service:
        found["pid"] = service.pid
        with Load(service.port) as load:
            time.sleep(0.5)
            began = time.monotonic()
            for version in range(1, times + 1):
                upgrade(service, version)
            found["seconds"] = (time.monotonic() - began) / times - kind.deaf
            time.sleep(0.5)
        found |= {"upgrades": times, "requests": load.counts(), "keeps_pid": service.parent == service.pid}
        found["started_process_ended"] = service.has_ended()
    for careful in (True, False):
        with running(kind, place, number + (100 if careful else 200)) as service:
            with Load(service.port) as load:
                time.sleep(0.5)
                before = service.workers_of(service.parent)
                if careful:
                    # The operator waits, and sees that no new parent comes up.
                    kind.deploy(place, service.directory, 1, True)
                    os.kill(service.parent, signal.SIGUSR2)
                    watch(service, 2 * BLIND_WAIT)
                else:
                    upgrade_blindly(service, 1, True)
                left = [pid for pid in before if procfs.identity(pid)]
            found["broken" if careful else "broken_blindly"] = {"requests": load.counts(), "old_workers": len(left)}
    return found


class running:
    """Runs a service, and kills all of its processes at the end."""

    def __init__(self, kind: Kind, place: Path, number: int):
        self.arguments = kind, place, number

    def __enter__(self) -> Deployed:
        self.service = Deployed(*self.arguments)
        if len(self.service.next_lines(WORKERS, LIMIT)) < WORKERS:
            raise Failed("the workers")
        time.sleep(1)
        return self.service

    def __exit__(self, *_: object) -> None:
        procfs.end_everything()
        self.service.close()


def table(results: dict) -> str:
    def lost(requests: dict) -> str:
        return f"{sum(requests.values()) - requests.get('answered', 0):,} of {sum(requests.values()):,}"

    def effect(facts: dict, key: str) -> str:
        return f"{facts[key]['old_workers']} of {WORKERS} old workers left, {lost(facts[key]['requests'])} requests lost"

    rows: list[tuple[str, Callable[[dict], str]]] = [
        ("signals for an upgrade", lambda facts: ", ".join(facts["signals"])),
        ("waits that the operator checks", lambda facts: str(len(facts["signals"]) - 1)),
        ("pid of the parent", lambda facts: "stays" if facts["keeps_pid"] else "changes"),
        ("the started process", lambda facts: "has ended" if facts["started_process_ended"] else "goes on"),
        ("an upgrade takes, s", lambda facts: f"{facts['seconds']:.2f}"),
        ("requests lost in the upgrades", lambda facts: lost(facts["requests"])),
        ("broken version, USR2 only", lambda facts: effect(facts, "broken")),
        (f"broken version, all signals every {BLIND_WAIT} s", lambda facts: effect(facts, "broken_blindly")),
    ]
    lines = [["", *results], ["---"] * (len(results) + 1)]
    for title, cell in rows:
        lines.append([title, *(cell(facts) if "failed" not in facts else "failed" for facts in results.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares upgrades.")
    parser.add_argument("place", type=lambda place: Path(place).resolve(), help="the PLACE of `run`")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure only these supervisors")
    parser.add_argument("--times", type=int, default=10, help="upgrades of each supervisor")
    args = parser.parse_args()
    procfs.adopt_orphans()
    os.chdir(args.place)
    shutil.rmtree("runs", ignore_errors=True)
    results = {}
    numbers = count(1)
    for kind in kinds(args.place):
        if args.only and kind.peer.name not in args.only:
            continue
        print(f"{time.strftime('%H:%M:%S')} {kind.peer.name}", file=sys.stderr, flush=True)
        try:
            results[kind.peer.name] = measure(kind, args.place, next(numbers), args.times)
        except Failed as failure:
            results[kind.peer.name] = {"failed": str(failure)}
            print(f"{kind.peer.name}: {failure}", file=sys.stderr)
        finally:
            procfs.end_everything()
    (HERE / "upgrades.json").write_text(json.dumps(results, indent=1) + "\n")
    text = f"<!-- Written by benches/peers/upgrades.py. benches/README.md explains the table. -->\n\n{table(results)}\n"
    (HERE / "upgrades.md").write_text(text)
    print(text)
    sys.exit(any("failed" in facts for facts in results.values()))


if __name__ == "__main__":
    main()
