"""A safetensors file that knows its own sha256: over every byte, the checksum's own digits read as zeros.

It is the entry "sha256" of the file's metadata, so that header and tensors are covered alike.
"""

import hashlib
from pathlib import Path

from expunge.errors import ExpungeError
from expunge.models.checkpoint import CHUNK, head

NAME = "sha256"
BLANK = "0" * 64
MARK = f'"{NAME}":"'.encode()  # inside other entries the quotation marks are escaped


def seal_file(file: Path) -> None:
    """Put the checksum into a file whose metadata holds `BLANK` under `NAME`."""
    place = _place(head(file))
    assert place is not None, f"{file} has no room for a checksum"
    digits = _digest(file, place)
    with file.open("r+b") as handle:
        handle.seek(place)
        handle.write(digits.encode())


def check_file(file: Path, metadata: dict[str, str], error: type[ExpungeError], *, required: bool) -> bool:
    """Whether a file has a checksum, as those of older versions do not.

    metadata: the file's own, as it was read. Raises `error` if the checksum is wrong, or missing though `required`.
    """
    if NAME not in metadata and not required:
        return False
    place = _place(head(file)) if NAME in metadata else None
    if place is None or metadata[NAME] != _digest(file, place):
        raise error(f"{file} is damaged: its bytes do not fit its checksum. Get or make the file again.")
    return True


def _place(header: bytes) -> int | None:
    """Where the digits begin in the file."""
    found = header.find(MARK)
    return None if found < 0 or header.find(MARK, found + 1) >= 0 else found + len(MARK)


def _digest(file: Path, place: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        digest.update(handle.read(place))
        digest.update(BLANK.encode())
        handle.seek(place + len(BLANK))
        while part := handle.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()
