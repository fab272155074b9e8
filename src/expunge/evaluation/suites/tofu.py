"""The TOFU benchmark's sets and its nine-component model utility (Maini et al. 2024)."""

from pathlib import Path

from expunge.data.benchmarks import tofu as files
from expunge.evaluation.suites.suite import Suite, limit_note, subsample

RETAIN = 400  # what the hub's retain_perturbed holds, and every published number was taken on


def tofu(folder: Path | str, forget: str = "forget10", limit: int | None = None, *, max_new_tokens: int = 200) -> Suite:
    """TOFU's evaluation sets, from a folder of its files or from the hub ("locuslab/TOFU").

    forget (`<forget>_perturbed`), retain (`retain_perturbed`, the first 400), real_authors and world_facts (their
    `_perturbed` files) and holdout (`holdoutXX` of the same share). Model utility is the harmonic mean of probability,
    ROUGE-L recall and truth ratio of the middle three; real authors and world facts have no paraphrases, so their truth
    ratio reads the answer itself, and their probability is taken among the options.

    `limit` keeps that many evenly spaced examples of each set; None keeps all. Raises RequestError naming a missing
    file, ConfigurationError for an unknown split.
    """
    _, holdout = files.split(forget)
    whole = {
        "forget": files.read(folder, f"{forget}_perturbed"),
        "retain": files.read(folder, "retain_perturbed")[:RETAIN],
        "real_authors": files.read(folder, "real_authors_perturbed"),
        "world_facts": files.read(folder, "world_facts_perturbed"),
        "holdout": files.read(folder, holdout),
    }
    return Suite(
        name="tofu",
        sets={name: subsample(examples, limit) for name, examples in whole.items()},
        utility=("retain", "real_authors", "world_facts"),
        with_options=("real_authors", "world_facts"),
        max_new_tokens=max_new_tokens,
        notes=limit_note(whole, limit),
    )
