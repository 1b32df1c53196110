"""A running supervisor with its workers."""

import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import procfs
from peers import HERE, Peer, base_environment

WORKERS = 4


@dataclass(frozen=True)
class Line:
    """The line that a worker writes when its code begins."""

    pid: int
    ns: int


class Service:
    def __init__(self, peer: Peer, place: Path, number: int, *, fate: str = "", watched: bool = False):
        self.peer = peer
        self.port = _free_port()
        self.lines: list[Line] = []
        self.status: int | None = None
        self._taken = 0
        words = [f"{number:03}", *peer.name.split(", "), *([fate] if fate else [])]
        self.directory = directory = place / "runs" / "-".join(words)
        directory.mkdir(parents=True)
        self._prepare(directory)
        argv = peer.argv(watched, place=place, port=self.port, directory=directory)
        env = {**base_environment(place), **peer.environment(watched, directory=directory), "PEERS_PORT": str(self.port)}
        env |= {"PEERS_LINES": str(directory / "lines"), "PEERS_FATE": fate}
        log = (directory / "log").open("wb")
        to_log = [(os.POSIX_SPAWN_DUP2, log.fileno(), fd) for fd in (1, 2)]
        # Restores the default signal actions. Otherwise the service would ignore SIGPIPE, as Python does, and SIGHUP,
        # as programs under nohup do.
        defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        # Puts the service into a new process group, but not into a new session. supertrees changes its own process
        # group, which a session leader cannot do.
        self.started_ns = time.monotonic_ns()
        self.pid = os.posix_spawn(argv[0], argv, env, file_actions=to_log, setpgroup=0, setsigdef=defaults)
        log.close()
        self._pidfd = os.pidfd_open(self.pid)

    def _prepare(self, directory: Path) -> None:
        os.mkfifo(directory / "lines")
        # The pipe is opened for writing too. Otherwise a read would return the end of the file as soon as no worker has
        # the pipe open.
        self._pipe = os.open(directory / "lines", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        template = (HERE / "programs" / "nginx.conf").read_text()
        filled_in = template.replace("@PORT@", str(self.port)).replace("@PLACE@", str(directory))
        (directory / "nginx.conf").write_text(filled_in)

    def close(self) -> None:
        """Closes the descriptors. The processes still run: procfs.end_everything() kills them."""
        os.close(self._pipe)
        os.close(self._pidfd)

    def update(self) -> None:
        """Adds the workers that have begun since the last call."""
        if self.peer.worker_title:
            known = {line.pid for line in self.lines}
            new = [pid for pid in procfs.children(self.pid) if pid not in known]
            new = [pid for pid in new if procfs.title(pid).startswith(self.peer.worker_title)]
            self.lines += [Line(pid, time.monotonic_ns()) for pid in new]
            return
        try:
            while data := os.read(self._pipe, 65536):
                *whole, self._rest = (self._rest + data).split(b"\n")
                self.lines += [Line(*map(int, line.split())) for line in whole]
        except BlockingIOError:
            pass

    def next_lines(self, count: int, seconds: float) -> list[Line]:
        """Waits for the next `count` workers to begin. Returns fewer lines if the time is up or the parent ends."""
        end = time.monotonic() + seconds
        while True:
            ended = self.has_ended()
            self.update()
            new = self.lines[self._taken : self._taken + count]
            if len(new) == count or ended or time.monotonic() > end:
                self._taken += len(new)
                return new
            self._wait(end)

    def _wait(self, end: float) -> None:
        if self.peer.worker_title:
            time.sleep(0.00005)
        else:
            select.select([self._pipe, self._pidfd], [], [], max(end - time.monotonic(), 0))

    def skip_lines(self) -> None:
        self.update()
        self._taken = len(self.lines)

    def has_ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait_for_end(self, seconds: float) -> bool:
        if self.status is None:
            select.select([self._pidfd], [], [], seconds)
        return self.has_ended()

    def signal(self, number: signal.Signals) -> None:
        if not self.has_ended():
            os.kill(self.pid, number)

    def workers(self) -> list[tuple[int, str]]:
        """Returns the living workers, oldest first."""
        self.update()
        living = [procfs.identity(line.pid) for line in self.lines]
        return [process for process in living if process]

    def others(self) -> list[tuple[int, str]]:
        """Returns the living descendants of the parent that are no workers: helpers, supervisors in between."""
        workers = {line.pid for line in self.lines}
        living = [procfs.identity(pid) for pid in procfs.descendants(self.pid) if pid not in workers]
        return [process for process in living if process]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
