"""Ctrl-C and SIGTERM: a run ends at its next safe point, where its state can be kept; a second signal ends it at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user or the system asks the run to end; `number` is the signal's."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


_state = {"pending": 0, "depth": 0, "signals": 0, "last": 0}


def install() -> None:
    """Handle SIGINT and SIGTERM from now on; for the command line."""
    _state.update(pending=0, depth=0, signals=0, last=0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def _handle(number: int, _: FrameType | None) -> None:
    _state["signals"] += 1
    _state["last"] = number
    if _state["signals"] > 1:
        os._exit(128 + number)
    if not _state["depth"]:
        raise Interrupted(number)
    _state["pending"] = number


def received() -> int:
    """The number of the signal that ends this process; 0 if there was none."""
    return _state["last"]


def requested() -> bool:
    """Whether a signal waits for the end of a `postponed` block."""
    return bool(_state["pending"])


@contextmanager
def postponed() -> Iterator[None]:
    """Let a signal wait until the block ends, which then raises Interrupted."""
    _state["depth"] += 1
    try:
        yield
    finally:
        _state["depth"] -= 1
    if not _state["depth"] and _state["pending"]:
        number, _state["pending"] = _state["pending"], 0
        raise Interrupted(number)
