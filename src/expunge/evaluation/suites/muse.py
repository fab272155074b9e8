"""MUSE as a suite: verbatim memorization, knowledge of what was to go and to stay, and privacy leakage."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from expunge.data.benchmarks import muse as files
from expunge.errors import RequestError
from expunge.evaluation.suites.suite import Suite, Writing, limit_note, subsample
from expunge.request import Example

VERBMEM_TOKENS, KNOWMEM_TOKENS = 128, 32
STOPS = ("\n\n", "\nQuestion", "Question:")
TEXTS = ("forget", "retain", "holdout")


def muse(folder: Path | str, limit: int | None = None, *, trailing_space: bool = False) -> Suite:
    """MUSE's evaluation (Shi et al. 2025, arXiv 2407.06460), from a folder of its files or "muse-bench/MUSE-News".

    `forget.verbmem` (VerbMem ↓): ROUGE-L F1 of the 128 tokens the model writes after an excerpt of a text to forget
    against the text's own next 128. `forget.knowmem` (KnowMem ↓) and `retain.knowmem` (the utility, ↑): ROUGE-L F1 of up
    to 32 tokens it writes as answer to a question, after the benchmark's solved ones. All three between 0 and 1 (the
    paper shows per cent). `privleak` (0 is best) from the sets forget and holdout, the texts of `privleak/`, which the
    other membership attacks and extraction strength read too; the set retain gives the loss on texts that must stay.
    Texts are cut to the evaluation's `max_length`: 2048 there is the paper's.

    trailing_space: end each question with "Answer: ", as the published code does. Most tokenizers write an answer's
    first word with the space before it, and know no word after a space of its own: without is the default.
    `limit` keeps that many evenly spaced examples of each set. A part whose folder is missing is left out, with a note.

    Raises RequestError naming a missing or malformed file, or if none of verbmem, knowmem and privleak is there.
    """
    parts = [part for part in ("verbmem", "knowmem", "privleak") if files.has(folder, part)]
    if not parts:
        raise RequestError(
            f"{folder} holds none of MUSE's folders verbmem, knowmem and privleak. Give the folder they lie in, or "
            f"{files.HUBS[0]}."
        )
    whole: dict[str, Sequence[Example]] = {}
    leads: dict[str, str] = {}
    if "verbmem" in parts:
        whole["forget.verbmem"] = files.verbmem(folder)
    for side in ("forget", "retain") if "knowmem" in parts else ():
        whole[f"{side}.knowmem"], shots = files.knowmem(folder, side)
        leads[f"{side}.knowmem"] = "".join(f"Question: {shot.prompt}\nAnswer: {shot.response}\n\n" for shot in shots)
    texts = {name: files.texts(folder, "privleak", name) for name in TEXTS if "privleak" in parts}
    absent = [part for part in ("verbmem", "knowmem", "privleak") if part not in parts]
    notes = [f"MUSE's {', '.join(absent)} is left out: {folder} has no such folder"] if absent else []
    notes.append("MUSE's measure of utility is retain.knowmem; it has no model_utility")
    return Suite(
        "muse",
        {name: subsample(examples, limit) for name, examples in texts.items()},
        writings=_writings(
            {name: subsample(examples, limit) for name, examples in whole.items()}, leads, trailing_space
        ),
        silent=TEXTS,
        notes=(*notes, *limit_note({**whole, **texts}, limit)),
    )


def _writings(
    examples: Mapping[str, tuple[Example, ...]], leads: Mapping[str, str], trailing_space: bool
) -> dict[str, Writing]:
    form = "Question: {}\nAnswer: " if trailing_space else "Question: {}\nAnswer:"
    return {
        key: Writing(rows, KNOWMEM_TOKENS, lead=leads[key], form=form, stops=STOPS)
        if key in leads
        else Writing(rows, VERBMEM_TOKENS)
        for key, rows in examples.items()
    }
