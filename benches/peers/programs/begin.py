"""The first step of each worker in Python: it writes its pid and the time to the pipe that the measurement reads.

If PEERS_FATE is "broken", the worker then fails to start. If it is "dies", the worker exits after 0.1 s.
"""

import os
import threading
import time

IS_BROKEN = os.environ.get("PEERS_FATE") == "broken"
DIES = os.environ.get("PEERS_FATE") == "dies"


def write_line() -> None:
    now = time.monotonic_ns()
    lines = os.open(os.environ["PEERS_LINES"], os.O_WRONLY | os.O_APPEND)
    os.write(lines, b"%d %d\n" % (os.getpid(), now))
    os.close(lines)
    if DIES:
        death = threading.Timer(0.1, os._exit, [1])
        death.daemon = True
        death.start()


def begin() -> None:
    write_line()
    if IS_BROKEN:
        raise RuntimeError("this worker cannot start")
