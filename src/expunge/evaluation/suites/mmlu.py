"""MMLU as a suite: what a model still knows of 57 subjects."""

from collections.abc import Sequence
from pathlib import Path

from expunge.data.benchmarks import mmlu as files
from expunge.errors import ConfigurationError
from expunge.evaluation.suites.suite import Quiz, Scoring, Suite, subsample

MOST_SHOTS = 5  # all that dev/ has of each subject


def quizzes(
    folder: Path | str, subjects: Sequence[str] = (), limit: int | None = None, shots: int = 0
) -> tuple[dict[str, Quiz], tuple[str, ...]]:
    """A quiz `mmlu_<subject>` for each subject (default: all in the folder), and a note on what `limit` left out.

    limit: that many evenly spaced questions of each subject. shots: the first so many of the subject's dev questions.
    Raises ConfigurationError unless `shots` is 0 to 5, and what reading the files raises.
    """
    if not 0 <= shots <= MOST_SHOTS:
        raise ConfigurationError(f"shots must be 0 to {MOST_SHOTS}, got {shots}.")
    whole = {f"mmlu_{subject}": files.read(folder, subject) for subject in subjects or files.subjects(folder)}
    solved = {name: files.read(folder, name.removeprefix("mmlu_"), "dev")[:shots] if shots else () for name in whole}
    cut = sum(len(questions) > (limit or len(questions)) for questions in whole.values())
    notes = (f"only {limit} evenly spaced questions of each of {cut} MMLU subjects were used",) if cut else ()
    return {name: Quiz(subsample(questions, limit), solved[name]) for name, questions in whole.items()}, notes


def mmlu(
    folder: Path | str,
    *,
    subjects: Sequence[str] = (),
    limit: int | None = None,
    shots: int = 0,
    scoring: Scoring = "letter",
) -> Suite:
    """MMLU's test questions from a folder with test/ and dev/ (see `quizzes`): each subject, and all as `mmlu`."""
    asked, notes = quizzes(folder, subjects, limit, shots)
    return Suite("mmlu", {}, quizzes=asked, groups={"mmlu": tuple(asked)}, scoring=scoring, notes=notes)
