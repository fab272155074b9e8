"""What a run is made of, by name: it goes on from a checkpoint only if every name means the same as then."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.errors import ConfigurationError
from expunge.reading import read_object

HASH = "sha256:"


@dataclass(frozen=True)
class Identity:
    """Named facts: short ones (a setting's value) as text, long ones (data, weights) as "sha256:" and 64 hex digits."""

    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, **facts: Any) -> "Identity":
        """Facts from plain values; the underscores of a name become spaces."""
        return cls({name.replace("_", " "): plain(value) for name, value in facts.items()})

    @classmethod
    def read(cls, value: Any) -> "Identity | None":
        """The identity in a decoded JSON file; None if it is none, as in files of older versions."""
        if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return cls(value)
        return None

    def __or__(self, other: "Identity") -> "Identity":
        return Identity({**self.facts, **other.facts})

    def differences(self, now: "Identity") -> list[str]:
        """What differs between these facts (then) and others (now), in words; empty if nothing does."""
        names = [name for name in {**self.facts, **now.facts} if self.facts.get(name) != now.facts.get(name)]
        return [_difference(name, self.facts.get(name), now.facts.get(name)) for name in names]

    def check(self, saved: Any, place: Path) -> None:
        """Raise ConfigurationError, naming what differs, unless `saved`, read from `place`, are these facts."""
        then = Identity.read(saved)
        if then is None:
            raise ConfigurationError(
                f"{place} does not say what it was made from: another version of expunge wrote it. Run without --resume "
                "to start over."
            )
        if others := then.differences(self):
            raise ConfigurationError(
                f"{place} was made with other inputs or settings than those of this run. What differs: "
                f"{'; '.join(others)}. Give the same as then, or run without --resume to start over."
            )


def _difference(name: str, then: str | None, now: str | None) -> str:
    if then is not None and now is not None and (then.startswith(HASH) or now.startswith(HASH)):
        return name
    return f"{name} ({then or 'none'} then, {now or 'none'} now)"


def plain(value: Any) -> str:
    """A setting's value as text: hashes stay as they are, everything else becomes JSON."""
    if isinstance(value, str) and value.startswith(HASH):
        return value
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def digest(parts: Iterable[bytes | bytearray | memoryview]) -> str:
    """The hash of all parts, each with its length, as a fact."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return HASH + found.hexdigest()


# Files that belong together, each with its sha256: damage to any of them is seen before it is used.

SEAL = "checksums.json"


def seal(folder: Path) -> None:
    """Write the sha256 of every file in `folder` to `checksums.json` there."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != SEAL)
    (folder / SEAL).write_text(json.dumps({file.name: file_sha256(file) for file in files}, indent=1))


def check_seal(folder: Path, *needed: str) -> None:
    """Raise ConfigurationError, naming the file, unless the sealed files, the `needed` among them, are as they were."""
    if not (folder / SEAL).is_file():
        raise ConfigurationError(
            f"{folder} holds no {SEAL}: it is damaged, or another version of expunge wrote it. Run without --resume to "
            "start over."
        )
    known = read_object(folder / SEAL, ConfigurationError)
    for file in sorted({*known, *needed}):
        path = folder / file
        if Path(file).name != file or not path.is_file() or known.get(file) != file_sha256(path):
            raise ConfigurationError(
                f"{path} is damaged: it is not what was written when the checkpoint was made. Run without --resume to "
                "start over."
            )


def file_sha256(file: Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
