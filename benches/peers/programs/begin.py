"""What each worker in Python does first: its pid and the clock, to the pipe that the measurement reads.

Two measurements ask for more than that.
"""

import os
import threading
import time


def begin() -> None:
    now = time.monotonic_ns()
    lines = os.open(os.environ["PEERS_LINES"], os.O_WRONLY | os.O_APPEND)
    os.write(lines, b"%d %d\n" % (os.getpid(), now))
    os.close(lines)
    fate = os.environ.get("PEERS_FATE")
    if fate == "broken":
        raise RuntimeError("this worker cannot start")
    if fate == "dies":
        death = threading.Timer(0.2, os._exit, [1])
        death.daemon = True
        death.start()
