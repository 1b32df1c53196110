"""The supervisors, and the command that starts each with four workers on a port."""

import os
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent

# The timeout, in seconds, for supervisors that can detect a hung worker. 5 is uvicorn's default.
HANG_TIMEOUT = 5


@dataclass(frozen=True)
class Peer:
    name: str
    # The words of the command. They may contain {place}, {port} and {directory}, which argv() fills in.
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    # Arguments or environment variables that make the supervisor detect a hung worker. None if it cannot detect one.
    hang: list[str] | dict[str, str] | None = None
    # Whether HUP to the parent replaces the workers.
    reloads: bool = False
    # If the workers run no code of ours, this is the process title that each sets at the end of its start.
    worker_title: str = ""

    def argv(self, watched: bool, **places: object) -> list[str]:
        extra = self.hang if watched and isinstance(self.hang, list) else []
        return [word.format(**places) for word in self.command[:1] + extra + self.command[1:]]

    def environment(self, watched: bool, **places: object) -> dict[str, str]:
        extra = self.hang if watched and isinstance(self.hang, dict) else {}
        return {name: value.format(**places) for name, value in {**self.env, **extra}.items()}


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
    """Returns the variables for all supervisors. HOME is `place`, so that none writes to the user's home directory."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return {**kept, "HOME": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
