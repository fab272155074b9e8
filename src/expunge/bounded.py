"""Running what others wrote, such as a chat template, for a limited time and in limited memory."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None

LOOK = 0.1  # seconds between two looks at the clock
STATM = Path("/proc/self/statm")


class TooLongError(BaseException):
    """Raised in a thread whose time is up; no `except Exception` of what runs there can stop it."""

    def __str__(self) -> str:
        return "it takes too long"


class _Watch:
    """One thread that looks at the deadlines of all others."""

    def __init__(self) -> None:
        self.deadlines: dict[int, float] = {}
        self.lock = threading.Lock()
        self.started = False

    def start(self) -> None:
        if not self.started:
            self.started = True
            threading.Thread(target=self._look, daemon=True, name="expunge-watch").start()

    def _look(self) -> None:
        while True:
            time.sleep(LOOK)
            with self.lock:
                late = [thread for thread, deadline in self.deadlines.items() if time.monotonic() > deadline]
                for thread in late:
                    del self.deadlines[thread]
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooLongError))


_WATCH = _Watch()


@contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Raise TooLongError in the block after `seconds`, and MemoryError where it allocates about `memory` bytes at once.

    The time is that of Python code: a single call into C is not interrupted. The memory is bounded on Linux only.
    """
    _WATCH.start()
    thread, before = threading.get_ident(), _limit_memory(memory)
    with _WATCH.lock:
        _WATCH.deadlines[thread] = time.monotonic() + seconds
    try:
        yield
    finally:
        with _WATCH.lock:
            _WATCH.deadlines.pop(thread, None)
        if before is not None and resource is not None:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _limit_memory(memory: int) -> tuple[int, int] | None:
    """Lower the limit of the address space to what is used now and `memory` more; the limit that stood before."""
    if resource is None or not STATM.exists():
        return None
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(STATM.read_text().split()[0]) * resource.getpagesize() + memory
    if before[0] != resource.RLIM_INFINITY and before[0] <= limit:
        return None
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    return before
