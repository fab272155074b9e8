"""Tuned on, reported on: examples on which settings were chosen say nothing of examples nobody looked at."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.errors import ConfigurationError
from expunge.evaluation.suites import Suite
from expunge.reading import read_json, read_object
from expunge.request import Example, Paths, paths_of, read_examples

LEAST = 2  # examples of a set that must be left to report on


def read_marks(paths: Paths) -> frozenset[str]:
    """The marks (see `Example.mark`) of the examples in one or several files: the examples themselves (as a request's
    sets), or what the results.json or run.json of a run says it was tuned on.

    Raises RequestError for a file that cannot be read, ConfigurationError for results that say nothing of tuning.
    """
    return frozenset().union(*(_marks_of(path) for path in paths_of(paths)))


def _marks_of(path: Path) -> frozenset[str]:
    record = _record(path)
    if record is None:
        return frozenset(example.mark for example in read_examples(path))
    marks = marks_in(record)
    if not marks:
        raise ConfigurationError(
            f"{path} names no examples that settings were chosen on (`tuned_on`). Give the examples themselves, as JSONL."
        )
    return marks


def marks_in(record: Mapping[str, Any]) -> frozenset[str]:
    """All marks that a results.json or run.json, or one of its runs, lists under `tuned_on`."""
    runs = record.get("runs")
    runs = runs if isinstance(runs, list) else []
    listed = [
        record.get("tuned_on"),
        *(run.get("tuned_on") for run in runs if isinstance(run, Mapping)),
    ]
    return frozenset(str(mark) for marks in listed if isinstance(marks, list) for mark in marks)


def beside(model: Path) -> frozenset[str]:
    """What the run that made a model folder was tuned on, by the run.json beside it; nothing where there is none."""
    record = model.parent / "run.json"
    if not model.is_dir() or not record.is_file():
        return frozenset()
    return marks_in(read_object(record, ConfigurationError))


def apart(suite: Suite, marks: Collection[str], *, leave_out: bool) -> Suite:
    """The suite without the examples that settings were chosen on, with a note that says so.

    leave_out: False refuses instead. Sets, choices and writings are looked through; multiple-choice questions of a
    benchmark are not a person's examples and are never tuned on.

    Raises ConfigurationError if there are such examples and they are not to be left out, or too few others remain.
    """
    if not marks:
        return suite
    groups = _groups(suite)
    seen = _seen(groups, marks)
    found = [f"{count} of {len(groups[name])} {name} examples" for name, count in seen.items() if count]
    if not found:
        note = f"settings were chosen on {len(marks)} examples; none of them is reported on"
        return replace(suite, notes=(*suite.notes, note))
    if not leave_out:
        raise ConfigurationError(
            f"Settings were chosen on {', '.join(found)} of this suite: what is measured on them flatters. Report on other "
            "examples, or pass --leave-out-tuned to leave these out."
        )
    if not leaves_enough(suite, marks):
        raise ConfigurationError(
            f"Settings were chosen on {', '.join(found)}: too few are left to report on. Choose settings on fewer "
            "(`Request.split`, or a smaller `validation`)."
        )

    def rest(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(example for example in examples if example.mark not in marks)

    return replace(
        suite,
        sets={name: rest(examples) for name, examples in suite.sets.items()},
        choices={name: replace(each, examples=rest(each.examples)) for name, each in suite.choices.items()},
        writings={key: replace(each, examples=rest(each.examples)) for key, each in suite.writings.items()},
        notes=(*suite.notes, f"left out, since settings were chosen on them: {', '.join(found)}"),
    )


def as_far_as_possible(suite: Suite, marks: Collection[str]) -> Suite:
    """The suite without the examples a method's own search uses; with them, and a note, where too few others remain."""
    if leaves_enough(suite, marks):
        return apart(suite, marks, leave_out=True)
    return included(suite, marks)


def included(suite: Suite, marks: Collection[str]) -> Suite:
    """The suite as it is, with a note that settings were chosen on some of its examples."""
    count = sum(_seen(_groups(suite), marks).values())
    note = f"settings were chosen on {count} of the examples, and the numbers include them"
    return replace(suite, notes=(*suite.notes, note)) if count else suite


def leaves_enough(suite: Suite, marks: Collection[str]) -> bool:
    """Whether every set keeps at least two examples when those are left out."""
    groups = _groups(suite)
    seen = _seen(groups, marks)
    return all(len(examples) - seen[name] >= LEAST for name, examples in groups.items() if seen[name])


def _groups(suite: Suite) -> dict[str, tuple[Example, ...]]:
    others = (*suite.choices.items(), *suite.writings.items())
    return {**suite.sets, **{name: each.examples for name, each in others}}


def _seen(groups: Mapping[str, tuple[Example, ...]], marks: Collection[str]) -> dict[str, int]:
    return {name: sum(example.mark in marks for example in examples) for name, examples in groups.items()}


def _record(path: Path) -> dict[str, Any] | None:
    """A results.json or run.json; None for any other file."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        value = read_json(path, ConfigurationError)
    except ConfigurationError:  # JSON lines, which `read_examples` reads or explains
        return None
    return value if isinstance(value, dict) and ("runs" in value or "command" in value) else None
