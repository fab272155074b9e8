"""A model folder that is written shard by shard, survives a kill, and takes its place in one step when it is whole.

While it is being written it stands beside its target, hidden: the shards in `model/`, and a journal of those that are
finished (written, on the disk, with their sha256) together with what was asked for. The same request goes on from
there; another one starts over.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.errors import OutputError, OutputRefusedError
from expunge.files import MARKER, explained, mark, remove, swap, sync, write_json
from expunge.models.checkpoint import CHUNK
from expunge.reading import read_object

JOURNAL = "journal.json"


@dataclass
class Growing:
    """The unfinished folder: `model` is where the files go, `finished` what the journal holds of each shard."""

    folder: Path
    request: Mapping[str, Any]
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def finish(self, name: str, entry: Mapping[str, Any]) -> None:
        """Push the shard `name` to the disk, then book it as finished; `entry` must hold its sha256."""
        sync(self.model / name)
        self.finished[name] = dict(entry)
        write_json(self.folder / JOURNAL, {"request": self.request, "finished": self.finished})


def place_of(out: Path) -> Path:
    """Where the unfinished folder of `out` stands."""
    out = out.absolute()
    return out.with_name(f".{out.name}.partial")


@contextmanager
def resumable(out: Path, request: Mapping[str, Any], *, resume: bool = True) -> Iterator[Growing]:
    """Yield the unfinished folder of `out`; when the block ends, its model takes the place of `out` in one step.

    What an interrupted run (killed, or Ctrl-C) with the same `request`, a JSON object, has finished is still there
    and listed, unless `resume` is false; each shard is checked against its sha256 first. After any other failure
    nothing is left. The caller holds `out` (`outputs.reserved`).
    Raises OutputError if the disk is full or not writable.
    """
    out = Path(out).absolute()
    growing = Growing(place_of(out), request)
    if growing.folder.is_symlink():
        raise OutputRefusedError(
            f"{growing.folder} is a link, and unfinished work is not kept behind links. Remove it."
        )
    with explained(out):
        growing.folder.mkdir(parents=True, exist_ok=True)
        try:
            _take_up(growing, resume=resume)
            yield growing
            for file in growing.model.iterdir():
                if file.name not in growing.finished:
                    sync(file)
            mark(growing.model)
            sync(growing.model / MARKER)
            sync(growing.model)
            swap(growing.model, out)
        except KeyboardInterrupt:
            if not (growing.folder / JOURNAL).exists():
                remove(growing.folder)
            raise
        except BaseException:
            remove(growing.folder)
            raise
        remove(growing.folder)


def _take_up(growing: Growing, *, resume: bool) -> None:
    """Keep what is finished, and only that."""
    finished = _journal(growing) if resume else {}
    if growing.model.is_symlink():
        growing.model.unlink()
    growing.model.mkdir(exist_ok=True)
    for name, entry in finished.items():
        file = growing.model / name
        if Path(name).name == name and file.is_file() and not file.is_symlink() and sha256(file) == entry["sha256"]:
            growing.finished[name] = entry
    if not growing.finished:
        remove(growing.folder / JOURNAL)
    for file in growing.model.iterdir():
        if file.name not in growing.finished:
            remove(file)


def _journal(growing: Growing) -> dict[str, dict[str, Any]]:
    """The shards that the journal lists; none where there is no journal, it is damaged or of another request."""
    try:
        journal = read_object(growing.folder / JOURNAL, OutputError)
    except OutputError:
        return {}
    finished = journal.get("finished")
    if journal.get("request") != json.loads(json.dumps(growing.request)) or not isinstance(finished, dict):
        return {}
    return {
        name: entry
        for name, entry in finished.items()
        if Path(name).name == name and isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
    }


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while part := handle.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()
