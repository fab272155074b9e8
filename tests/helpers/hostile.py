"""Hostile and odd forms of files: a whole file of any kind in, a stream of damaged or harmless copies out, by a seed."""

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Expected = Literal["refused", "same", "free"]  # free: refused, or read as what it now says
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**63, 10**400, 0.5, "", "x", "a" * 5000, "\x00", "../../etc/passwd", [], {}, [[]], [None],
    {"a": {}}, [1, "a"], -(10**18), 1e308, "[/x]", "\x1b[2J", "(a+)+$", [10**9, 10**9],
)  # fmt: skip
BAD_JSON = (
    b"", b"\xff", b"{", b"[" * 100_000, b"9" * 5000, b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b'{"a": 1e999}', b"[1]",
    b"null", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", b"PK\x03\x04", b"\x80\x04}q\x00.",
    b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\x00" * 100, b"{'a': 1}", b'{"a": 1,}', b'{"a": 1} {"b": 2}',
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One hostile copy: what was done, how to do it to the file, and what a reader must make of it."""

    name: str
    apply: Callable[[Path], None]
    expected: Expected = "free"


def written(name: str, content: bytes, expected: Expected = "free") -> Case:
    return Case(name, lambda file: _put(file, content), expected)


def _put(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def no_regular_files() -> list[Case]:
    """In place of the file: a pipe, a folder, a device, a link to nowhere, nothing."""
    return [
        Case("a pipe", _fifo, "refused"),
        Case("a folder", _folder, "refused"),
        Case("a device", lambda file: (file.unlink(), file.symlink_to("/dev/zero"))[0], "refused"),
        Case("a broken link", lambda file: (file.unlink(), file.symlink_to("nowhere"))[0], "refused"),
        Case("nothing", lambda file: file.unlink(), "refused"),
    ]


def bytes_damaged(content: bytes, random_: random.Random, count: int) -> Iterator[Case]:
    """Cut off, with bytes changed, taken out or put in: read as what it now says, or refused."""
    for _ in range(count):
        place = random_.randrange(len(content))
        kind = random_.randrange(4)
        if kind == 0:
            yield written(f"cut at {place}", content[:place])
        elif kind == 1:
            odd = bytes([random_.randrange(256)])
            yield written(f"byte {place} is {odd!r}", content[:place] + odd + content[place + 1 :])
        elif kind == 2:
            yield written(f"without bytes {place}…", content[:place] + content[place + random_.randrange(1, 9) :])
        else:
            noise = random_.randbytes(random_.randrange(1, 9))
            yield written(f"{noise!r} put in at {place}", content[:place] + noise + content[place:])


def json_damaged(value: Any, random_: random.Random, count: int) -> Iterator[Case]:
    """A JSON file that is none, one that says the same in another form, and one with odd values in its places."""
    yield from (written(f"JSON {content[:30]!r}", content, "refused") for content in BAD_JSON)
    text = json.dumps(value)
    yield written("byte-order mark", b"\xef\xbb\xbf" + text.encode(), "same")
    yield written("indented", json.dumps(value, indent=4).encode(), "same")
    yield written("escaped", json.dumps(value, ensure_ascii=True).encode(), "same")
    yield written("cut in half", text[: len(text) // 2].encode(), "refused")
    yield written("not UTF-8", text[:-1].encode() + b"\xff" + text[-1:].encode(), "refused")
    places = list(_places(value))
    for _ in range(count):
        path = random_.choice(places)
        odd = random_.choice(ODD)
        yield written(f"{'.'.join(map(str, path))} = {odd!r:.40}", _dumps(_with(value, path, odd)))


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _with(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], odd)  # type: ignore[index]
    return copy


def weights_damaged(content: bytes, random_: random.Random, count: int) -> Iterator[Case]:
    """A safetensors file whose header lies, or that is none."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]

    def put(name: str, changed: Any, payload: bytes = data, expected: Expected = "refused") -> Case:
        text = json.dumps(changed).encode()
        return written(name, struct.pack("<Q", len(text)) + text + payload, expected)

    yield put("the same header, other spacing", header, expected="same")
    for size in (0, 2, 7, 2**63 - 1, 2**64 - 1, length + 1, len(content), 10**9):
        yield written(f"header of {size} bytes", struct.pack("<Q", size) + content[8:], "refused")
    for place in (0, 4, 8, 8 + length // 2, 8 + length, len(content) - 1):
        yield written(f"cut at {place}", content[:place], "refused")
    yield written("bytes after the end", content + b"\0", "refused")
    yield from (
        written(f"header {bad[:20]!r}", struct.pack("<Q", len(bad)) + bad + data, "refused")
        for bad in BAD_JSON
        if bad != b"null"
    )
    for _ in range(count):
        name = random_.choice(names)
        item = header[name]
        first, last = item["data_offsets"]
        changes: list[dict[str, Any]] = [
            {"dtype": random_.choice(["F99", "", None, 5, "F8_E8M0", "C128", ["F32"]])},
            {"shape": random_.choice([[-1], [2**62, 2**62], "x", [1.5], [None], [10**400], {}, [*item["shape"], 2]])},
            {
                "data_offsets": random_.choice(
                    [[last, first], [first + 1, last + 1], [0, 2**64], [-4, last], [first], "ab"]
                )
            },
            {"data_offsets": [first, last - 1]},
        ]
        change = random_.choice(changes)
        yield put(f"{name}: {change}"[:80], {**header, name: {**item, **change}})
    yield put("two tensors in one place", {**header, "again": header[names[0]]})
    yield put("a tensor that is no object", {**header, names[0]: 5})
    yield put("an entry too few", {name: item for name, item in header.items() if name != names[0]})
