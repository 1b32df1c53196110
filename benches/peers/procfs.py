"""Reads facts about processes from the kernel, and kills all processes that the measurement has started."""

import ctypes
import os
import resource
import signal
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes orphaned descendants children of this process, so that it finds them."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _read(path: Path | str) -> str:
    """Returns the content, or an empty string if the process has ended."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    return [int(child) for task in _tasks(pid) for child in _read(task / "children").split()]


def descendants(pid: int) -> list[int]:
    found = children(pid)
    for child in found:
        found.extend(children(child))
    return found


def title(pid: int) -> str:
    return _read(f"/proc/{pid}/cmdline").replace("\0", " ")


def identity(pid: int) -> tuple[int, str] | None:
    """Returns the pid and the start time, or None for a process that has ended, even if it was not reaped yet."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (pid, fields[19]) if fields and fields[0] not in "ZX" else None


def is_alive(process: tuple[int, str]) -> bool:
    return identity(process[0]) == process


def wakeups(pid: int) -> int:
    """Returns how often the threads of the process went to sleep, and so how often they were woken."""
    return sum(_value(_read(task / "status"), "voluntary_ctxt_switches:") for task in _tasks(pid))


def cpu_ns(pid: int) -> int:
    return sum(int(_read(task / "schedstat").split()[0]) for task in _tasks(pid))


def memory_kib(pid: int) -> tuple[int, int]:
    """Returns the PSS and the private memory. Private memory would be freed if only this process ended."""
    rollup = _read(f"/proc/{pid}/smaps_rollup")
    return _value(rollup, "Pss:"), _value(rollup, "Private_Clean:") + _value(rollup, "Private_Dirty:")


def _value(text: str, key: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(key)), 0)


def wait_for_idle_machine(seconds: float) -> bool:
    """Waits for at most this time until the CPUs are idle for nine tenths of an interval of 0.15 s."""
    end = time.monotonic() + seconds
    while not _is_idle(0.15):
        if time.monotonic() > end:
            return False
    return True


def _is_idle(seconds: float) -> bool:
    before = _cpu_times()
    time.sleep(seconds)
    spent = [after - before for before, after in zip(before, _cpu_times())][:8]
    return sum(spent[3:5]) > 0.9 * sum(spent)


def cpu_of_others_s() -> float:
    """Returns the CPU time that the machine has spent, without this process and the children that it has reaped."""
    times = _cpu_times()
    ours = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    spent = (sum(times[:8]) - sum(times[3:5])) / os.sysconf("SC_CLK_TCK")
    return spent - sum(usage.ru_utime + usage.ru_stime for usage in ours)


def _cpu_times() -> list[int]:
    """Returns user, nice, system, idle, iowait, irq, softirq and steal. They include the times in the later fields."""
    return [int(ticks) for ticks in _read("/proc/stat").splitlines()[0].split()[1:]]


def end_everything() -> None:
    """Kills all descendants of this process by pid, and reaps them."""
    while below := descendants(os.getpid()):
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        reap()
        time.sleep(0.01)


def reap_orphans(except_pid: int) -> None:
    """Reaps children that have ended, except for one, whose exit status the caller reads."""
    for child in children(os.getpid()):
        if child != except_pid:
            try:
                os.waitpid(child, os.WNOHANG)
            except ChildProcessError:
                pass


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
