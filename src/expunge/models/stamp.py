"""Which files a model was read from, and whether they are still the same."""

import time
from dataclasses import dataclass
from pathlib import Path

READ = {".safetensors", ".json", ".model", ".jinja", ".gguf", ".txt"}
SETTLED = 0.1  # seconds a file must be older than to be known by its times: clocks of file systems tick in milliseconds


@dataclass(frozen=True)
class Stamp:
    """Path, size, inode and times of change of every file a model, with an adapter its base too, is read from."""

    files: tuple[tuple[str, int, int, int, int], ...]
    taken: float

    @classmethod
    def of(cls, *folders: Path) -> "Stamp":
        """Of model folders as they are now; what is no folder here (a hub id) has no files."""
        places = sorted({folder.resolve() for folder in folders if folder.is_dir()})
        files = [file for place in places for file in sorted(place.iterdir()) if file.suffix in READ and file.is_file()]
        return cls(tuple(_entry(file) for file in files), time.time())

    @property
    def settled(self) -> bool:
        """Whether a later change to a file would show in its times."""
        return all(max(entry[3], entry[4]) < (self.taken - SETTLED) * 1e9 for entry in self.files)

    def changed(self) -> list[str]:
        """The files that are not what they were, or are gone."""
        return [entry[0] for entry in self.files if not Path(entry[0]).is_file() or _entry(Path(entry[0])) != entry]


def _entry(file: Path) -> tuple[str, int, int, int, int]:
    status = file.stat()
    return str(file), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
