"""The request: what to forget, what must stay, and what was never trained on."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from expunge.errors import RequestError
from expunge.request.columns import Columns
from expunge.request.example import Example, named
from expunge.request.files import Paths, Source, check_columns, read_rows


@dataclass(frozen=True)
class Request:
    """What must be forgotten (`forget`), what must stay (`retain`), and examples never trained on (`holdout`).

    sources: the files each set was read from, by its name. Raises RequestError if the forget set is empty, or if an
    example is in both forget and retain.
    """

    forget: tuple[Example, ...]
    retain: tuple[Example, ...] = ()
    holdout: tuple[Example, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)
    sources: Mapping[str, tuple[Source, ...]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.forget:
            raise RequestError("The forget set is empty: name at least one example to forget.")
        retained = {example.key: example for example in self.retain}
        shared = [(example, retained[example.key]) for example in self.forget if example.key in retained]
        if shared:
            first, second = shared[0]
            raise RequestError(
                f"{len(shared)} example{'s stand' if len(shared) > 1 else ' stands'} in both the forget and the retain "
                f"set; the first is {named(first)} and {named(second)}. Take each out of one of the two sets, or, where "
                "the retain set is the whole training set, pass --retain-includes-forget."
            )
        notes = [
            *self.warnings,
            *(
                note
                for name in ("forget", "retain", "holdout")
                if (note := _duplicates(name, getattr(self, name))) is not None
            ),
        ]
        trained = {example.key for example in (*self.forget, *self.retain)}
        leaked = sum(example.key in trained for example in self.holdout)
        if leaked:
            notes.append(f"holdout: {leaked} of {len(self.holdout)} examples also stand in forget or retain")
        object.__setattr__(self, "warnings", tuple(dict.fromkeys(notes)))

    @classmethod
    def read(
        cls,
        forget: Paths,
        retain: Paths | None = None,
        holdout: Paths | None = None,
        *,
        columns: Columns | None = None,
        retain_includes_forget: bool = False,
    ) -> "Request":
        """Read each set from one or several files or folders (see `read_rows`), and keep their hashes in `sources`.

        columns: the column each field is read from. retain_includes_forget: the retain set is the whole training set;
        rows of the forget set, and the new versions of corrected and rewritten ones, are taken out of it, with a note.
        Raises RequestError with the file and line of the first problem.
        """
        paths = {"forget": forget, "retain": retain, "holdout": holdout}
        sets = {name: read_rows(each, columns) for name, each in paths.items() if each is not None}
        check_columns(columns or {}, *sets.values())
        examples = {name: rows.examples for name, rows in sets.items()}
        notes = [note for rows in sets.values() for note in rows.notes]
        if retain_includes_forget:
            if "retain" not in examples:
                raise RequestError("--retain-includes-forget takes rows out of the retain set: give it with --retain.")
            examples["retain"], note = without(examples["retain"], examples["forget"])
            notes.append(note)
        sources = {name: rows.sources for name, rows in sets.items()}
        return cls(**examples, warnings=tuple(notes), sources=sources)

    def split(self, share: float, seed: int = 0) -> tuple["Request", "Request"]:
        """A part to choose settings on, with `share` of each set, and the rest, to report on.

        Stratified: the same share of each `subject`, as nearly as whole examples allow. Which examples go where depends
        on the seed and their words alone, not on their order; duplicates stay together. A set of a single example goes
        to the part that is reported on. Raises RequestError if `share` is not between 0 and 1, or the forget set has
        fewer than two different examples.
        """
        if not 0 < share < 1:
            raise RequestError(f"A split takes a share between 0 and 1 for choosing settings, not {share:g}.")
        if len({example.key for example in self.forget}) < 2:
            raise RequestError("The forget set has fewer than two different examples: it cannot be split.")
        sets = {name: getattr(self, name) for name in ("forget", "retain", "holdout")}
        chosen = {name: _drawn(examples, share, seed) for name, examples in sets.items()}
        tuning, reported = (
            [tuple(e for e in rows if (e.key in chosen[name]) == wanted) for name, rows in sets.items()]
            for wanted in (True, False)
        )
        return Request(*tuning, sources=self.sources), Request(*reported, sources=self.sources)

    @property
    def replacements(self) -> tuple[Example, ...]:
        """The corrected and rewritten examples as they shall be known from now on."""
        return tuple(example.after for example in self.forget if example.after is not None)


def without(retain: Sequence[Example], forget: Sequence[Example]) -> tuple[tuple[Example, ...], str]:
    """The retain set without the forget set's rows, old versions and new; and a note on how many were taken out."""
    old = {example.key for example in forget}
    new = {example.after.key for example in forget if example.after is not None} - old
    rest = tuple(example for example in retain if example.key not in old | new)
    present = {example.key for example in retain}
    counts = [f"{sum(example.key in old for example in retain)} row(s) of the forget set"]
    if new & present:
        counts.append(f"{sum(example.key in new for example in retain)} row(s) that hold a new version")
    missing = len(old - present)
    note = f"retain: {' and '.join(counts)} were taken out, {len(rest)} are left"
    return rest, note + (f"; {missing} of {len(old)} rows to forget were not in it" if missing else "")


def _drawn(examples: Sequence[Example], share: float, seed: int) -> set[tuple[str, ...]]:
    """The keys of `share` of the different examples, of each subject the same share: quotas rounded to the nearest."""
    strata: dict[str, list[Example]] = {}
    for example in {example.key: example for example in reversed(examples)}.values():
        strata.setdefault(example.subject, []).append(example)
    total = sum(map(len, strata.values()))
    if total < 2:
        return set()
    wanted = min(total - 1, max(1, math.floor(share * total + 0.5)))
    quotas = {subject: share * len(rows) for subject, rows in strata.items()}
    counts = {subject: math.floor(quota) for subject, quota in quotas.items()}
    by_remainder = sorted(strata, key=lambda subject: (counts[subject] - quotas[subject], subject))
    for subject in by_remainder[: wanted - sum(counts.values())]:
        counts[subject] += 1

    def chance(example: Example) -> bytes:
        return hashlib.sha256(f"{seed} {example.mark}".encode()).digest()

    return {row.key for subject, rows in strata.items() for row in sorted(rows, key=chance)[: counts[subject]]}


def _duplicates(name: str, examples: Sequence[Example]) -> str | None:
    seen: dict[tuple[str, ...], Example] = {}
    repeats = [
        (example, seen[example.key]) for example in examples if seen.setdefault(example.key, example) is not example
    ]
    if not repeats:
        return None
    again, first = repeats[0]
    return f"{name}: {len(repeats)} duplicate example(s), the first {named(again)} repeats {named(first)}"
