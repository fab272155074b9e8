"""Arithmetic on checkpoints as streams: base + α·w⊙(plus − minus), a piece of a tensor at a time.

Workers read, compute and write pieces side by side; the calling thread hashes what they wrote, in the file's order.
Memory is a few pieces whatever the model's size. Everything is computed in fp32 (fp64 where base, plus or minus is
fp64) and rounded once, to the base's dtype.
"""

import hashlib
import math
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from expunge.errors import ModelError
from expunge.models.checkpoint import DTYPES, Stored, head
from expunge.models.disk import BLOCK, Source, Target, created, early, opened

PIECE = 1 << 18  # entries: the numbers of one piece stay in the cache from the first operation to the last
WORKERS = 4  # more than two cores need, so that some read while others compute; hashing keeps up with no more
FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# A sum of squares outside these bounds may have under- or overflowed in fp32 and is computed again in fp64.
TINY, HUGE = 1e-25, 1e30


@dataclass(frozen=True)
class Product:
    """s·B·A, which a LoRA adapter adds to one weight: `a` (r, in), `b` (out, r); `transposed`: the weight is (in, out).

    It is never held whole: only the rows at hand are multiplied, in fp32.
    """

    a: Stored
    b: Stored
    scale: float
    transposed: bool = False
    dtype: str = "F32"

    @property
    def file(self) -> Path:
        return self.b.file

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.b.shape[0], self.a.shape[1]
        return shape[::-1] if self.transposed else shape


Term = Stored | Product
Values = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Edit:
    """One tensor of the result: base + α·w⊙(plus − minus); without plus and minus, the base's bits."""

    name: str
    base: Stored
    plus: Term | None = None
    minus: Term | None = None
    weight: Stored | None = None

    @property
    def entries(self) -> int:
        return math.prod(self.base.shape)

    @property
    def terms(self) -> tuple[Term, ...]:
        return tuple(term for term in (self.base, self.plus, self.minus, self.weight) if term is not None)

    @property
    def moved(self) -> int:
        """Bytes read and written; a low-rank term's are too few to count."""
        return self.base.size + sum(term.size for term in self.terms if isinstance(term, Stored))

    @property
    def wide(self) -> torch.dtype:
        return torch.float64 if any(term.dtype == "F64" for term in self.terms[:3]) else torch.float32


@dataclass(frozen=True)
class Shard:
    """A written file: its sha256, ‖α·w⊙(plus − minus)‖² over its tensors, and the names of those whose bits changed."""

    sha256: str
    square: float
    changed: tuple[str, ...]


def values(term: Term) -> Values:
    """A function (begin, end) → those entries of the term, flattened, in memory of their own."""
    if isinstance(term, Product):
        return _product(term)
    width = _width(term)

    def read(begin: int, end: int) -> Tensor:
        data = bytearray((end - begin) * width)
        with term.file.open("rb") as handle:
            handle.seek(term.start + begin * width)
            if handle.readinto(data) != len(data):
                raise early(term.file)
        return torch.frombuffer(data, dtype=DTYPES[term.dtype]) if data else torch.empty(0)

    return read


def _product(term: Product) -> Values:
    left, right = term.b.read().float(), term.a.read().float()  # (out, r), (r, in)
    if term.transposed:
        left, right = right.T.contiguous(), left.T.contiguous()
    width = right.shape[1]

    def rows(begin: int, end: int) -> Tensor:
        first, last = begin // width, -(-end // width)
        found = (left[first:last] @ right).reshape(-1) * term.scale
        return found[begin - first * width : end - first * width]

    return rows


def differ(edit: Edit, first: int | None = None) -> bool:
    """Whether plus and minus differ, in the `first` entries or anywhere; a NaN counts as a difference."""
    sides = [values(side) for side in (edit.plus, edit.minus) if side is not None]
    end = edit.entries if first is None else min(first, edit.entries)
    for begin in range(0, end, PIECE):
        parts = [side(begin, min(begin + PIECE, end)) for side in sides]
        if edit.base.dtype not in FLOATS:
            parts = [part.view(torch.uint8) for part in parts]
        if not bool((parts[0] == (parts[1] if len(parts) > 1 else 0)).all()):
            return True
    return False


class _Scratch(threading.local):
    """One worker's buffers: two for bytes as they are stored, three for wide numbers."""

    def __init__(self) -> None:
        self.raw = [_room() for _ in range(2)]
        self.wide = [torch.empty(PIECE * 8, dtype=torch.uint8) for _ in range(3)]

    def read(self, slot: int, item: Stored, begin: int, end: int, files: Mapping[Path, Source]) -> Tensor:
        width = _width(item)
        first = files[item.file].read(self.raw[slot], item.start + begin * width, (end - begin) * width, width)
        return torch.frombuffer(self.raw[slot], dtype=DTYPES[item.dtype], count=end - begin, offset=first)

    def widen(self, slot: int, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        room = self.wide[slot][: numbers.numel() * dtype.itemsize].view(dtype)
        return room.copy_(numbers)


@dataclass
class _Piece:
    edit: Edit
    begin: int
    end: int
    products: Mapping[Product, Values]
    out: mmap.mmap  # PIECE · 8 bytes and two blocks

    @property
    def start(self) -> int:
        """Where the piece begins in the file."""
        return self.edit.base.start + self.begin * _width(self.edit.base)

    @property
    def first(self) -> int:
        """Where it begins in `out`: at the same place of a block, as a direct write demands."""
        return self.start % BLOCK if self.start % _width(self.edit.base) == 0 else 0

    @property
    def size(self) -> int:
        return (self.end - self.begin) * _width(self.edit.base)

    @property
    def numbers(self) -> Tensor:
        dtype = DTYPES[self.edit.base.dtype]
        return torch.frombuffer(self.out, dtype=dtype, count=self.end - self.begin, offset=self.first)

    @property
    def moved(self) -> int:
        before, after = (self.edit.moved * at // self.edit.entries for at in (self.begin, self.end))
        return after - before


class Stream:
    """Computes edits with scale α, file by file. Use it in a `with`: its threads live as long as the block."""

    def __init__(self, scale: float, *, workers: int | None = None, progress: Callable[[int], None] | None = None):
        self.scale, self.progress = scale, progress or (lambda _: None)
        self.workers = workers or WORKERS
        self._scratch = _Scratch()
        self._free = deque(_room() for _ in range(2 * self.workers))

    def __enter__(self) -> "Stream":
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the workers are the threads; torch's own would fight them for the cores
        self._pool = ThreadPoolExecutor(self.workers, "edit")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)

    def shard(self, edits: Sequence[Edit], target: Path) -> Shard:
        """Write the file all of whose tensors `edits` are, in the order of their bytes, to `target`.

        The header is the base file's. Raises ModelError, naming tensor and file, on NaN or infinity in an input or in
        the result; OSError if `target` cannot be written.
        """
        beginning = head(edits[0].base.file)
        digest, square, changed = hashlib.sha256(beginning), 0.0, set[str]()
        waiting: deque[tuple[_Piece, Future[tuple[float, bool]]]] = deque()

        def settle() -> None:
            nonlocal square
            piece, future = waiting[0]
            found, differs = future.result()
            digest.update(memoryview(piece.out)[piece.first : piece.first + piece.size])
            self.progress(piece.moved)
            square += found
            if differs:
                changed.add(piece.edit.name)
            self._free.append(piece.out)
            waiting.popleft()

        with ExitStack() as stack:
            files = {path: stack.enter_context(opened(path)) for path in sorted(_files(edits))}
            size = len(beginning) + sum(edit.base.size for edit in edits)
            file = stack.enter_context(created(target, size))
            # No file may be closed while a worker still uses it, or another's would take its number.
            stack.callback(self._finish, waiting)
            file.write(memoryview(beginning), 0, len(beginning), 0)
            for piece in self._pieces(edits):
                waiting.append((piece, self._pool.submit(self._compute, piece, files, file)))
                if not self._free:
                    settle()
            while waiting:
                settle()
        return Shard(digest.hexdigest(), square, tuple(sorted(changed)))

    def _finish(self, waiting: deque[tuple[_Piece, Future[tuple[float, bool]]]]) -> None:
        for _, future in waiting:
            future.cancel()
        wait([future for _, future in waiting])
        self._free.extend(piece.out for piece, _ in waiting)
        waiting.clear()

    def _pieces(self, edits: Sequence[Edit]) -> Iterator[_Piece]:
        for edit in edits:
            products = {term: _product(term) for term in edit.terms if isinstance(term, Product)}
            begin = 0
            while begin < edit.entries:
                # After the first, pieces begin at a block of the file.
                over = (edit.base.start // _width(edit.base) + begin) % (BLOCK // _width(edit.base))
                end = min(begin + PIECE - (over if over < PIECE // 2 else 0), edit.entries)
                yield _Piece(edit, begin, end, products, self._free.popleft())
                begin = end

    def _compute(self, piece: _Piece, files: Mapping[Path, Source], file: Target) -> tuple[float, bool]:
        """Write one piece; returns its ‖α·w⊙(plus − minus)‖² and whether any bit of it changed."""
        edit, scratch = piece.edit, self._scratch
        old = scratch.read(0, edit.base, piece.begin, piece.end, files)  # (n,), as stored
        new = piece.numbers
        square = 0.0
        if edit.base.dtype in FLOATS:
            total = scratch.widen(0, old, edit.wide)
            change = self._change(piece, files)
            square = 0.0 if change is None else _square(change)
            if change is not None and square != 0:
                total.add_(change, alpha=self.scale)
            new.copy_(total if square != 0 else old)  # where nothing changes, the bits stay: −0 + 0 would be 0
            if not math.isfinite(square) or not _sound(total, new):
                raise _fault(edit, piece.begin, piece.end, self.scale)
        else:
            new.copy_(old)
        changed = square != 0 and not torch.equal(_bits(new), _bits(old))
        file.write(memoryview(piece.out), piece.first, piece.size, piece.start)
        return self.scale**2 * square, changed

    def _change(self, piece: _Piece, files: Mapping[Path, Source]) -> Tensor | None:
        edit = piece.edit

        def wide(slot: int, term: Term) -> Tensor:
            if isinstance(term, Product):
                numbers = piece.products[term](piece.begin, piece.end)
            else:
                numbers = self._scratch.read(1, term, piece.begin, piece.end, files)
            return self._scratch.widen(slot, numbers, edit.wide)

        if edit.plus is not None:
            change = wide(1, edit.plus)
            if edit.minus is not None:
                change.sub_(wide(2, edit.minus))
        elif edit.minus is not None:
            change = wide(1, edit.minus).neg_()
        else:
            return None
        return change if edit.weight is None else change.mul_(wide(2, edit.weight))


def _square(numbers: Tensor) -> float:
    """Σ x²; infinite or NaN exactly if an entry is (or if an fp64 entry's square overflows)."""
    found = float(torch.dot(numbers, numbers))
    if TINY < found < HUGE:
        return found
    if found == 0 and not bool(numbers.any()):
        return 0.0
    return float(torch.linalg.vector_norm(numbers, dtype=torch.float64)) ** 2


def _sound(total: Tensor, rounded: Tensor) -> bool:
    """Whether the result is finite, after its rounding too."""
    return _square(total) ** 0.5 < 0.99 * torch.finfo(rounded.dtype).max or bool(rounded.isfinite().all())


def _fault(edit: Edit, begin: int, end: int, scale: float) -> ModelError:
    for term in edit.terms:
        bad = ~values(term)(begin, end).double().isfinite()
        if bool(bad.any()):
            place = begin + int(bad.nonzero()[0])
            where = ", ".join(map(str, _unravel(place, edit.base.shape)))
            return ModelError(
                f"{edit.name} holds NaN or infinity in {term.file} (entry [{where}]). The weights are damaged; nothing "
                "was written."
            )
    return ModelError(
        f"{edit.name}: with scale {scale:g} the result has values too large for {edit.base.dtype}, the dtype of the "
        "base. Choose a smaller --scale; nothing was written."
    )


def _unravel(place: int, shape: Sequence[int]) -> list[int]:
    found = []
    for size in reversed(shape):
        place, index = divmod(place, size)
        found.append(index)
    return found[::-1]


def _room() -> mmap.mmap:
    """Memory for the bytes of a piece that begins at a page, as direct reads and writes demand."""
    return mmap.mmap(-1, PIECE * 8 + 2 * BLOCK)


def _bits(numbers: Tensor) -> Tensor:
    return numbers.view(INTEGERS[numbers.element_size()])


def _width(item: Stored) -> int:
    return DTYPES[item.dtype].itemsize


def _files(edits: Sequence[Edit]) -> set[Path]:
    return {term.file for edit in edits for term in edit.terms if isinstance(term, Stored)}
