"""What the command line prints while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from expunge.runs.record import Listener

PLAIN_EVERY = 10.0  # seconds between two plain lines


def shown(text: str) -> str:
    """Text of data or paths for the terminal: no markup in it, and control characters as escapes."""
    return escape("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


class Printer(Listener):
    """Prints to standard error, so that standard output holds results only."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet
        self.bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage, self._last = "", 0.0

    def stage(self, name: str) -> None:
        self._stage, self._last = name, time.monotonic()
        if self.bar is not None:
            self._close_task()
        if not self.quiet:
            self.console.print(f"[dim]•[/dim] {shown(name)}")

    def note(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"  [yellow]note[/yellow] {shown(text)}")

    def step(self, entry: dict[str, Any], steps: int) -> None:
        if "residual" in entry:  # a solve
            self._advance(f"relative residual {entry['residual']:.3g}", entry["step"] + 1, steps)
            return
        sides = [side for side in ("forget", "retain") if f"{side}_nll" in entry]
        words = [f"{side if len(sides) > 1 else ''} {entry[f'{side}_nll']:.3f}".strip() for side in sides]
        self._advance("NLL " + ", ".join(words) + f", lr {entry['lr']:.2g}", entry["step"] + 1, steps)

    def batch(self, stage: str, done: int, total: int) -> None:
        self._advance(stage, done, total)

    def _advance(self, text: str, done: int, total: int) -> None:
        if self.bar is not None:
            if self._task is None:
                self._task = self.bar.add_task(text, total=total)
            self.bar.update(self._task, completed=done, total=total, description=text)
            if done >= total:
                self._close_task()
        elif not self.quiet and (done == total or time.monotonic() - self._last > PLAIN_EVERY):
            self._last = time.monotonic()
            print(f"  {self._stage}: {done}/{total} {text}", file=sys.stderr, flush=True)

    def _close_task(self) -> None:
        if self.bar is not None and self._task is not None:
            self.bar.remove_task(self._task)
            self._task = None


@contextmanager
def printer(*, quiet: bool = False) -> Iterator[Printer]:
    """A Printer, with a live progress bar if standard error is a terminal."""
    made = Printer(quiet=quiet)
    if quiet or not made.console.is_terminal:
        yield made
        return
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=made.console, transient=True) as made.bar:
        yield made
