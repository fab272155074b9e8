"""Reading and writing at a place in a file, side by side from many threads, as fast as the disk can.

A file the page cache holds is copied from there. Any other is read past the cache, straight into the reader's buffer,
where the file system allows it: that costs a fraction of the processor's time, and a model larger than memory does not
push everything else out of the cache. What is written goes past the cache too, except for the few bytes around the
edges of blocks.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import PAGESIZE, mmap
from pathlib import Path

from expunge.errors import ModelError

BLOCK = max(4096, PAGESIZE)  # bytes; direct reads and writes begin and end at a multiple, in the file and in memory
LOOKS = 16


@dataclass(frozen=True)
class Source:
    """A file open for reading; `direct` is the same file past the page cache, or None where that cannot be had."""

    path: Path
    handle: int
    direct: int | None

    def read(self, room: mmap, start: int, size: int, width: int) -> int:
        """Put bytes start..start + size into `room`; returns where in the room they begin, a multiple of `width`.

        The room must hold two blocks more than `size`. Raises ModelError if the file ends before that.
        """
        with memoryview(room) as view:
            if self.direct is not None and start % width == 0:
                first = start // BLOCK * BLOCK
                last = -(-(start + size) // BLOCK) * BLOCK
                if os.preadv(self.direct, [view[: last - first]], first) >= start + size - first:
                    return start - first
            done = 0
            while done < size:
                found = os.preadv(self.handle, [view[done:size]], start + done)
                if not found:
                    raise early(self.path)
                done += found
            return 0


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    handle = os.open(path, os.O_RDONLY)
    direct = None if _cached(handle) else _direct(path)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # read further ahead
    try:
        yield Source(path, handle, direct)
    finally:
        os.close(handle)
        if direct is not None:
            os.close(direct)


def _cached(handle: int) -> bool:
    """Whether the page cache seems to hold the file: whether it holds some bytes spread over it."""
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)  # the look shall not bring more in than it looks at
    size, byte = os.fstat(handle).st_size, bytearray(1)
    try:
        return all(os.preadv(handle, [byte], size * look // LOOKS, os.RWF_NOWAIT) for look in range(LOOKS))
    except OSError:  # it would have to wait for the disk, or the file system does not say
        return False


def _direct(path: Path) -> int | None:
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # no such thing on this file system
        return None
    try:
        os.preadv(direct, [mmap(-1, BLOCK)], 0)
    except OSError:
        os.close(direct)
        return None
    return direct


def early(file: Path) -> ModelError:
    return ModelError(f"{file} ends early: it is damaged or is being written.")


@dataclass(frozen=True)
class Target:
    """A file open for writing; `direct` as in Source."""

    handle: int
    direct: int | None

    def write(self, view: memoryview, first: int, size: int, start: int) -> None:
        """Put bytes first..first + size of `view`, which begins at a block, at `start` in the file."""
        end = start + size
        low, high = -(-start // BLOCK) * BLOCK, end // BLOCK * BLOCK
        if self.direct is not None and low < high and first % BLOCK == start % BLOCK:
            shift = first - start
            self._write(view[first : low + shift], start)
            low += self._write_direct(view[low + shift : high + shift], low)
            self._write(view[low + shift : first + size], low)
        else:
            self._write(view[first : first + size], start)

    def _write_direct(self, view: memoryview, start: int) -> int:
        """Returns how much was written: nothing where the file system wants another alignment."""
        assert self.direct is not None
        try:
            return os.pwrite(self.direct, view, start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0

    def _write(self, view: memoryview, start: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self.handle, view[done:], start + done)


@contextmanager
def created(path: Path, size: int) -> Iterator[Target]:
    """A new file of `size` bytes, for which the disk sets aside the room at once. Raises OSError if it has none."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    direct = None
    try:
        if hasattr(os, "O_DIRECT"):
            with suppress(OSError):  # no such thing on this file system
                direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
        if direct is not None and size:
            os.posix_fallocate(handle, 0, size)
        yield Target(handle, direct)
    finally:
        os.close(handle)
        if direct is not None:
            os.close(direct)
