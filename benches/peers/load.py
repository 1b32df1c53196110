"""Clients that make a connection for each request and count the requests without an answer."""

import socket
import threading
import time
from collections import Counter

THREADS = 4
# Seconds between two requests of a thread. If the service is fast, all threads together send 1,000 requests a second.
PERIOD = 0.004
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Load:
    def __init__(self, port: int):
        self._port = port
        self._stop = threading.Event()
        self._counts = [Counter() for _ in range(THREADS)]
        self._threads = [threading.Thread(target=self._run, args=[counts]) for counts in self._counts]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def counts(self) -> dict[str, int]:
        """Returns how many requests were answered, and how many failed for each reason. Call it after the load."""
        return dict(sum(self._counts, Counter()))

    def _run(self, counts: Counter) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            counts[request(self._port)] += 1
            due = max(due + PERIOD, time.monotonic() - PERIOD)
            time.sleep(max(due - time.monotonic(), 0))


def request(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(REQUEST)
            answer = b""
            while data := connection.recv(4096):
                answer += data
        return "answered" if answer.endswith(b"ok\n") else "closed"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionError:
        return "reset"
    except TimeoutError:
        return "late"
