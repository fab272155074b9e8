"""A reader tried on many versions of one file: what it makes of each, within a bound of time."""

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError
from tests.helpers.hostile import Case

SECONDS = 10  # for one file; each is a few kilobytes


class Hang(KeyboardInterrupt):
    """Passes through every `except Exception`."""


def outcome(read: Callable[[Path], Any], path: Path) -> Any:
    """What a reader makes of a file; "refused" where it raises one of our errors, which must have a text."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return read(path)
    except ExpungeError as error:
        return "refused" if str(error).strip() else error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(file: Path, read: Callable[[Path], Any], cases: Iterable[Case], path: Path | None = None) -> Counter:
    """Try every case on `file`; `path`: what the reader is given, where it is not the file itself.

    Fails with all cases that ended in another exception, took too long, were taken although they had to be refused,
    or were read as something else although they say the same.
    """
    path = path or file
    right, content = outcome(read, path), file.read_bytes()
    assert right != "refused", f"{path} must be readable as it is"
    wrong, counts = [], Counter()
    for item in cases:
        item.apply(file)
        begun = time.monotonic()
        try:
            value = outcome(read, path)
        except (Exception, Hang) as error:
            counts["fault"] += 1
            wrong.append(f"{item.name}: {type(error).__name__}: {str(error)[:200]}")
        else:
            counts["refused" if isinstance(value, str) and value == "refused" else "read"] += 1
            if item.expected == "refused" and value != "refused":
                wrong.append(f"{item.name}: taken silently")
            if item.expected == "same" and value != right:
                wrong.append(f"{item.name}: read as something else, or refused")
        if time.monotonic() - begun > SECONDS:
            wrong.append(f"{item.name}: took {time.monotonic() - begun:.1f} s")
        _restore(file, content)
    assert not wrong, f"{len(wrong)} of {counts.total()}:\n" + "\n".join(wrong[:40])
    return counts


def _restore(file: Path, content: bytes) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)
    file.write_bytes(content)
