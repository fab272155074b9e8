"""WMDP as a suite: hazardous knowledge that should be gone, and MMLU for what should not."""

from collections.abc import Sequence
from pathlib import Path

from expunge.data.benchmarks import wmdp as files
from expunge.errors import ConfigurationError
from expunge.evaluation.suites.mmlu import quizzes
from expunge.evaluation.suites.suite import Quiz, Scoring, Suite, limit_note, subsample


def wmdp(
    folder: Path | str,
    *,
    parts: Sequence[str] = ("bio", "cyber", "chem"),
    mmlu_folder: Path | str | None = None,
    limit: int | None = None,
    shots: int = 0,
    scoring: Scoring = "letter",
) -> Suite:
    """WMDP's questions, as `wmdp_bio`, `wmdp_cyber`, `wmdp_chem` and together as `wmdp`.

    mmlu_folder: MMLU's files; its subjects are asked too, as the knowledge that must stay. `limit`: that many evenly
    spaced questions of each part and subject. `shots` are solved MMLU questions; WMDP has none and is asked without.

    Raises ConfigurationError for a part that does not exist, or `shots` without MMLU; and what reading raises.
    """
    unknown = [part for part in parts if part not in files.SUBJECTS]
    if unknown or not parts:
        raise ConfigurationError(
            f"WMDP has no part {', '.join(unknown) or '(none given)'}; it has bio, cyber and chem."
        )
    if shots and mmlu_folder is None:
        raise ConfigurationError("WMDP has no solved questions to show: leave shots at 0, or give MMLU's folder too.")
    whole = {f"wmdp_{part}": files.read(folder, part) for part in parts}
    asked = {name: Quiz(subsample(questions, limit)) for name, questions in whole.items()}
    groups, notes = {"wmdp": tuple(asked)}, limit_note(whole, limit)
    if mmlu_folder is not None:
        further, more = quizzes(mmlu_folder, limit=limit, shots=shots)
        asked |= further
        groups["mmlu"], notes = tuple(further), (*notes, *more)
    return Suite("wmdp", {}, quizzes=asked, groups=groups, scoring=scoring, notes=notes)
