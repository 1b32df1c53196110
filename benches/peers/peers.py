"""The peers, and the settings of each: how it is started with four workers on a port."""

import os
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Seconds, where a peer can tell that a worker hangs. It is uvicorn's default.
HANG_TIMEOUT = 5


@dataclass(frozen=True)
class Peer:
    name: str
    # {place}, {port} and {directory} are filled in.
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    # What lets it see that a worker hangs, beyond its defaults. None: it cannot.
    hang: list[str] | dict[str, str] | None = None
    # HUP replaces the workers.
    reloads: bool = False
    # Its workers run nothing of ours, and are known by the title that they have once they are up.
    worker_title: str = ""

    def argv(self, watched: bool, **places: object) -> list[str]:
        extra = self.hang if watched and isinstance(self.hang, list) else []
        return [word.format(**places) for word in self.command[:1] + extra + self.command[1:]]

    def environment(self, watched: bool) -> dict[str, str]:
        extra = self.hang if watched and isinstance(self.hang, dict) else {}
        return {**self.env, **extra}


def _python(name: str, *arguments: str, **more) -> Peer:
    env = {"PYTHONPATH": str(HERE / "programs")}
    return Peer(name, ["{place}/venv/bin/" + arguments[0], *arguments[1:]], env=env, **more)


def _crate(name: str, program: str, **more) -> Peer:
    return Peer(name, ["{place}/crates/target/release/with-" + program], **more)


def _nginx() -> Peer:
    command = ["{place}/nginx", "-e", "stderr", "-p", "{directory}", "-c", "{directory}/nginx.conf"]
    return Peer("nginx", command, reloads=True, worker_title="nginx: worker process")


_BEATS = {"PEERS_HEARTBEAT": str(HANG_TIMEOUT)}

PEERS = [
    _crate("taskfork", "taskfork", hang=_BEATS, reloads=True),
    _crate("taskfork, spawn", "taskfork", env={"PEERS_BACKEND": "spawn"}, hang=_BEATS, reloads=True),
    _nginx(),
    _python(
        "gunicorn", "gunicorn", "--workers", "4", "--bind", "127.0.0.1:{port}", "wsgi:app",
        hang=["--timeout", str(HANG_TIMEOUT)], reloads=True,
    ),
    _python(
        "uvicorn", "uvicorn", "--workers", "4", "--port", "{port}", "--no-access-log", "asgi:app",
        hang=["--timeout-worker-healthcheck", str(HANG_TIMEOUT)], reloads=True,
    ),
    _python(
        "granian", "granian", "--interface", "asgi", "--workers", "4", "--port", "{port}",
        "--respawn-failed-workers", "asgi:app",
        reloads=True,
    ),
    _python("Tornado", "python", str(HERE / "programs" / "with_tornado.py")),
    _python("FastStream", "faststream", "run", "with_faststream:app", "--workers", "4"),
    _crate("prefork", "prefork"),
    _crate("supertrees", "supertrees"),
]


def base_environment(place: Path) -> dict[str, str]:
    """The same for all; what some write to their home directory stays in the place."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return {**kept, "HOME": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
