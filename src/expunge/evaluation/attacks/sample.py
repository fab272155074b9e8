"""Sample: many answers at a temperature, since what greedy decoding hides may still be likely."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from expunge import config
from expunge.config import Count, Positive
from expunge.errors import ConfigurationError
from expunge.evaluation import statistics
from expunge.evaluation.attacks.scene import Found, Scene
from expunge.evaluation.generation import Sampling, sample
from expunge.evaluation.measure import Measured
from expunge.evaluation.metrics import leakage, similarity
from expunge.evaluation.metrics.leakage import Judge
from expunge.evaluation.summary import canonical_weights

AT = (1, 16, 128)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """leak@k: the chance that one of k sampled answers gives the forgotten content away (arXiv 2511.04934).

    n samples of each forget question, c of them leaks: the mean of 1 − C(n−c, k)/C(n, k) over the questions, with a
    bootstrap interval over them; `leak_bound` is the exact one-sided 95 % upper bound of leak@1 for these questions
    (see `metrics.leakage`). n: samples a question (128, so that leak@128 is defined). k: default those of 1, 16, 128 that
    are at most n. temperature 1, top_p 1: the model's own distribution. judge, threshold: what is a leak, see
    `metrics.leakage.leaks`; "keywords" at 1: all key words of the answer. seed: of the draws, the same for every model.
    seconds: budget a model; None: none.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ()

    n: Count = 128
    k: tuple[Count, ...] | None = None
    temperature: Positive = 1.0
    top_p: Positive = 1.0
    judge: Judge = "keywords"
    threshold: Positive = 1.0
    seed: int = 0
    seconds: Positive | None = None

    def __post_init__(self) -> None:
        config.check(self)
        Sampling(self.temperature, self.top_p, self.seed)
        if self.threshold > 1:
            raise ConfigurationError(f"sample.threshold is a share: at most 1, got {self.threshold:g}.")
        beyond = [k for k in self.k or () if k > self.n]
        if beyond:
            raise ConfigurationError(
                f"sample.n = {self.n} samples cannot tell leak@{beyond[0]}: set sample.n to at least {beyond[0]}, or ask "
                "for a smaller sample.k."
            )

    @property
    def at(self) -> tuple[int, ...]:
        return tuple(k for k in AT if k <= self.n) if self.k is None else self.k

    def __call__(self, scene: Scene, found: Found) -> None:
        base = scene.untouched()["forget"]
        plan = scene.plan("forget", base.examples)
        rows = [row for row, ids in enumerate(plan.prompts) if ids is not None]
        if len(rows) < len(base.examples):
            found.notes.append(f"{len(base.examples) - len(rows)} running texts are too short for a prefix: left out")
        if not rows:
            raise ConfigurationError("sample: every text of the forget set is too short for a prefix to go on from.")
        found.add(0, "greedy", {"forget": base}, last=True)
        texts = sample(
            scene.loaded,
            [ids for ids in plan.prompts if ids is not None],
            self.n,
            sampling=Sampling(self.temperature, self.top_p, self.seed),
            max_new_tokens=scene.max_new_tokens,
            batch_size=scene.batch_size,
            progress=scene.progress,
        )
        asked = [base.shown[row] for row in rows]
        leaked = leakage.leaks(
            [prompt for prompt, _ in asked], [answer for _, answer in asked], texts,
            judge=self.judge, threshold=self.threshold,
        )  # fmt: skip
        metrics, intervals = self._summary(leaked, canonical_weights(base, 0)[:, rows])
        label = f"{self.n} samples at temperature {self.temperature:g}"
        found.add(self.n, label, {}, metrics=metrics, intervals=intervals, last=True)
        found.answers.append((label, _best(base, rows, texts, leaked)))

    def _summary(
        self, leaked: np.ndarray, weights: np.ndarray
    ) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """leaked: [examples, n]. weights: [B, examples]."""
        counts = leaked.sum(axis=1)
        columns = {f"leak_at_{k}": leakage.leak_at_k(counts, self.n, k) for k in self.at}
        drawn = statistics.means(np.stack(list(columns.values()), axis=1), weights)
        few = len(counts) < statistics.FEW
        intervals = {
            name: statistics.interval_of_mean(column) if few else statistics.interval(drawn[:, place])
            for place, (name, column) in enumerate(columns.items())
        }
        metrics = {name: float(column.mean()) for name, column in columns.items()}
        metrics["leak_bound"] = leakage.clopper_pearson(int(counts.sum()), leaked.size)
        return metrics, intervals


def _best(base: Measured, rows: Sequence[int], texts: Sequence[Sequence[str]], leaked: np.ndarray) -> Measured:
    """The forget examples with the sample that gives most away: a leak where there is one, then by ROUGE-L recall."""
    generations: list[str | None] = [None] * len(base.examples)
    recall = np.full(len(base.examples), np.nan)
    for place, row in enumerate(rows):
        distinct = list(dict.fromkeys(zip(texts[place], leaked[place].tolist(), strict=True)))
        scores, _ = similarity.rouge_l([base.shown[row][1]] * len(distinct), [text for text, _ in distinct])
        best = max(range(len(distinct)), key=lambda index: (distinct[index][1], scores[index]))
        generations[row], recall[row] = distinct[best][0], scores[best]
    return replace(base, columns={"rouge_l": recall}, generations=generations)
