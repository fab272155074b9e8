"""Two models on the same examples: which numbers differ by more than the choice of examples explains.

Both models answered the very same examples, so the differences are taken example by example: what makes an example hard
for both drops out, and far smaller changes show than two separate intervals could tell.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from expunge.evaluation import statistics
from expunge.evaluation.metrics import membership, quality, truth_ratio
from expunge.evaluation.result import Evaluation

ALPHA = 0.05  # the family-wise error rate of one comparison
TOKENS = "forget.token_logprob"  # the test of small forget sets, over blocks of tokens
WRITING = ("repetition", "refusal", "empty", "gibberish", "fluency", "new_disclosure")
MOST = 10_000_000  # resampled numbers held at a time
UTILITY = "model_utility is the harmonic mean of "  # how the note begins that names its parts
NUMBERS = int | float

Key = Hashable
Rows = dict[Key, dict[str, Any]]


@dataclass(frozen=True)
class Difference:
    """How a metric of one model differs from the other's.

    difference: one − other, over the `n` examples both have. low, high: its 95 % interval, by resampling the examples for
    both models at once, for a mean over fewer than 20 examples that of `statistics.subset_interval` (infinite below 6). p:
    two-sided, of a sign-flip test for a mean over examples, of the bootstrap for the others. adjusted: p after Holm's
    adjustment over the metrics of its `family`: one question each (see `family_of`), so that what one set shows does not
    depend on how many others were measured. beyond_noise: adjusted < .05. needed: how many examples it takes for any
    difference of this family to be beyond noise; None where `n` suffices.

    `TOKENS` takes blocks of neighbouring tokens for its `n` in place of examples: what it says is of these examples alone.
    """

    metric: str
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    beyond_noise: bool
    n: int
    family: str = ""
    needed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For results.json; numbers rounded to what their noise leaves."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 6) if np.isfinite(value) else None


def family_of(metric: str) -> str:
    """Which question a metric answers: what is remembered, written, kept, shown to membership tests, corrected."""
    name, _, measure = metric.partition(".")
    if metric == TOKENS:
        return "tokens"
    if name == "forget":
        return "writing" if measure in WRITING else "forget"
    return {"mia": "membership", "replacement": "replacement"}.get(name, "kept")


def paired(one: Evaluation, other: Evaluation, *, seed: int = 0) -> list[Difference]:
    """Every metric both evaluations have example by example, compared; in the order of `one.metrics`.

    Examples are matched by id, prompt and response; those only one model answered are left out. Means over examples,
    membership AUCs and TPRs whose scores were kept, and model utility are compared; what has no value per example (forget
    quality, say) is not. The order of the examples changes nothing.
    """
    sets = {name: both(name, one, other) for name in one.examples if name in other.examples}
    tables = {name: pair for name, pair in sets.items() if pair[0]}
    found: dict[str, tuple[float, float, float, float, int]] = {}
    for stream, (name, pair) in enumerate(sorted(tables.items())):
        known = next(iter(pair[0].values()))  # a row may hold a metric under its whole name
        keys = [key for key in one.metrics if key in other.metrics and (key.startswith(f"{name}.") or key in known)]
        found |= _means(name, keys, pair, stream, seed)
    found |= _membership(one, other, tables)
    utility = _utility(one, other, tables)
    if utility is not None:
        found["model_utility"] = utility
    if tables.get("forget") and (tokens := _of_tokens(tables["forget"], seed)) is not None:
        found[TOKENS] = tokens
    metrics = [metric for metric in (*one.metrics, TOKENS) if metric in found]
    families: dict[str, list[str]] = {}
    for metric in metrics:
        families.setdefault(family_of(metric), []).append(metric)
    adjusted: dict[str, float] = {}
    for members in families.values():
        adjusted |= zip(members, statistics.holm([found[metric][3] for metric in members]), strict=True)
    return [
        _difference(metric, found[metric], adjusted[metric], len(families[family_of(metric)])) for metric in metrics
    ]


def _difference(
    metric: str, numbers: tuple[float, float, float, float, int], adjusted: float, tests: int
) -> Difference:
    difference, low, high, p, n = numbers
    least = statistics.FEW if family_of(metric) == "membership" else statistics.rows_needed(tests, ALPHA)
    needed = least if n < least else None
    return Difference(metric, difference, low, high, p, adjusted, adjusted < ALPHA, n, family_of(metric), needed)


def _of_tokens(pair: tuple[Rows, Rows], seed: int) -> tuple[float, float, float, float, int] | None:
    """The change of log-probability per token of the forget set's answers, in nats, over blocks of tokens.

    A few examples have many tokens: of these very examples they tell a change from noise where a test over examples has
    no power. None unless every row keeps its tokens' log-probabilities, as small forget sets do.
    """
    rows = []
    for first, second in zip(pair[0].values(), pair[1].values(), strict=True):
        tokens, others = (np.array(row.get("token_logprob") or (), dtype=np.float64) for row in (first, second))
        if not len(tokens) or len(tokens) != len(others):
            return None
        rows.append(tokens - others)
    blocks = statistics.block_means(rows)
    low, high = statistics.subset_interval(blocks, seed=seed) or (-np.inf, np.inf)
    p_value = float(statistics.sign_flip_p(blocks[:, None], seed=seed)[0])
    return float(blocks.mean()), low, high, p_value, len(blocks)


def both(name: str, one: Evaluation, other: Evaluation) -> tuple[Rows, Rows]:
    """The rows of a set by example, those both have, in an order that follows the examples."""
    first, second = _keyed(one.examples[name]), _keyed(other.examples[name])
    common = sorted(set(first) & set(second), key=str)
    return {key: first[key] for key in common}, {key: second[key] for key in common}


def _keyed(rows: list[dict[str, Any]]) -> Rows:
    """Each row by its id and texts; equal rows are told apart by how many came before."""
    seen: dict[Key, int] = {}
    found: Rows = {}
    for row in rows:
        base = (str(row.get("id")), row.get("prompt"), row.get("response"))
        seen[base] = seen.get(base, -1) + 1
        found[base, seen[base]] = row
    return found


def values(name: str, metric: str, rows: Mapping[Key, dict[str, Any]]) -> np.ndarray | None:
    """The metric's value of each example, [n], NaN where it has none; None if no example has one.

    A row keeps the truth ratio R itself; the metric averages the score made of it.
    """
    given = [row.get(metric) for row in rows.values()]
    numbers = [float(value) if isinstance(value, NUMBERS) else np.nan for value in given]
    column = np.array(numbers, dtype=np.float64)
    if not np.isfinite(column).any():
        return None
    if metric == "truth_ratio":
        return (truth_ratio.forget_score if name == "forget" else truth_ratio.utility_score)(column)
    return column


def _means(
    name: str, keys: list[str], pair: tuple[Rows, Rows], stream: int, seed: int
) -> dict[str, tuple[float, float, float, float, int]]:
    columns = {}
    for key in keys:
        first, second = (values(name, key.removeprefix(f"{name}."), rows) for rows in pair)
        if first is not None and second is not None and np.isfinite(first - second).any():
            columns[key] = first - second
    if not columns:
        return {}
    gaps = np.stack(list(columns.values()), axis=1)  # [n, M]
    draws = statistics.means(gaps, _weights(len(gaps), stream, seed))  # [B, M]
    p_values = statistics.sign_flip_p(gaps, seed=seed)  # [M]
    return {
        key: (float(np.nanmean(gap)), *_interval(gap, draw), float(p), int(np.isfinite(gap).sum()))
        for key, gap, draw, p in zip(columns, gaps.T, draws.T, p_values, strict=True)
    }


def _interval(gap: np.ndarray, draws: np.ndarray) -> statistics.Interval:
    known = gap[np.isfinite(gap)]
    if len(known) >= statistics.FEW:
        return statistics.interval(draws)
    return statistics.subset_interval(known) or (-np.inf, np.inf)


def _weights(n: int, stream: int, seed: int) -> np.ndarray:
    """Bootstrap weights [B, n] that every metric and both models share."""
    samples = max(statistics.SAMPLES, min(statistics.FLIPS, MOST // n))
    return statistics.resample(n, stream=stream, samples=samples, seed=seed)


def _membership(
    one: Evaluation, other: Evaluation, tables: Mapping[str, tuple[Rows, Rows]]
) -> dict[str, tuple[float, float, float, float, int]]:
    """AUC and TPR of each attack whose scores stand in the rows of the forget and the holdout set.

    Of fewer than 20 examples in one of them, resamples know too little: the AUC's interval is that of
    `statistics.auc_change`, and a rate at 1 % has none.
    """
    if not {"forget", "holdout"} <= tables.keys():
        return {}
    measures: dict[str, tuple[Callable[..., float], Callable[..., np.ndarray]]] = {
        "auc": (membership.auc, statistics.aucs),
        "tpr_at_1_fpr": (membership.tpr_at_fpr, statistics.tprs),
    }
    found = {}
    places = sorted(tables)
    names = {key.split(".")[1] for key in one.metrics if key.startswith("mia.") and key in other.metrics}
    weights: list[np.ndarray] = []
    for name in sorted(names):
        found_scores = [[score_of(name, tables[side][model]) for side in ("forget", "holdout")] for model in (0, 1)]
        scores = [[score for score in pair if score is not None] for pair in found_scores]
        if any(len(pair) < 2 for pair in scores):
            continue
        fewer = min(len(tables[side][0]) for side in ("forget", "holdout"))
        if fewer < statistics.FEW:
            first, second = (membership.auc(*pair) for pair in scores)
            found[f"mia.{name}.auc"] = (first - second, *statistics.auc_change(first, second, fewer), fewer)
            continue
        if not weights:
            weights = [_weights(len(tables[side][0]), places.index(side), 0) for side in ("forget", "holdout")]
            rows = min(map(len, weights))
            weights = [weight[:rows] for weight in weights]
        for measure, (exact, resampled) in measures.items():
            first, second = (exact(*pair) for pair in scores)
            draws = resampled(*scores[0], *weights) - resampled(*scores[1], *weights)
            p_value = 1.0 if not np.any(draws) else statistics.bootstrap_p(draws)
            count = min(len(tables["forget"][0]), len(tables["holdout"][0]))
            found[f"mia.{name}.{measure}"] = (first - second, *statistics.interval(draws), p_value, count)
    return found


def score_of(attack: str, rows: Mapping[Key, dict[str, Any]]) -> np.ndarray | None:
    """The attack's score of each example, lower for members: what the rows keep under its name; [n] or None."""
    field = "nll" if attack == "loss" else attack
    given = [(row.get("membership") or {}).get(attack, row.get(field)) for row in rows.values()]
    if not given or not all(isinstance(value, NUMBERS) for value in given):
        return None
    return np.array(given, dtype=np.float64)


def _utility(
    one: Evaluation, other: Evaluation, tables: Mapping[str, tuple[Rows, Rows]]
) -> tuple[float, float, float, float, int] | None:
    """Model utility from its parts, each set's examples resampled once; None unless the parts give the number back."""
    parts = utility_parts(one)
    if not parts or parts != utility_parts(other) or "model_utility" not in other.metrics:
        return None
    places, weights = sorted(tables), {}
    means: list[list[float]] = [[], []]
    draws: list[list[np.ndarray]] = [[], []]
    for name, metric in parts:
        if name not in tables:
            return None
        size = len(tables[name][0])
        if name not in weights:
            weights[name] = _weights(size, places.index(name), 0)
        for model in (0, 1):
            column = values(name, metric, tables[name][model])
            if column is None:
                return None
            means[model].append(float(np.nanmean(column)))
            draws[model].append(statistics.means(column[:, None], weights[name])[:, 0])
    first, second = (quality.model_utility(each) for each in means)
    if abs(first - one.metrics["model_utility"]) > 1e-6 or abs(second - other.metrics["model_utility"]) > 1e-6:
        return None
    count = min(len(tables[name][0]) for name, _ in parts)
    if count < statistics.FEW and (exact := _small_utility(parts, tables, means)) is not None:
        return exact
    rows = min(len(draw) for draw in draws[0])
    resampled = [quality.harmonic_mean(np.stack([draw[:rows] for draw in each], axis=1)) for each in draws]
    gap = resampled[0] - resampled[1]
    p_value = 1.0 if not np.any(gap) else statistics.bootstrap_p(gap)
    return first - second, *statistics.interval(gap), p_value, count


def _small_utility(
    parts: list[tuple[str, str]], tables: Mapping[str, tuple[Rows, Rows]], means: list[list[float]]
) -> tuple[float, float, float, float, int] | None:
    """The difference of model utility over few examples of one set, by its linear part in each example's numbers.

    U = K / Σ 1/m_k moves with example i by Σ_k U² / (K m_k²) (x_ik − m_k); these sums, around U₁ − U₂, are tested as a
    mean over examples is. None where several sets take part, or a part is 0; below 6 examples the interval is infinite.
    """
    names = {name for name, _ in parts}
    if len(names) > 1 or not all(value > 0 for each in means for value in each):
        return None
    pair = tables[next(iter(names))]
    moved = []
    for model in (0, 1):
        known = [values(name, metric, pair[model]) for name, metric in parts]
        columns = np.stack([column for column in known if column is not None], axis=1)  # [n, K]
        utility, middle = quality.model_utility(means[model]), np.array(means[model])
        slopes = utility**2 / (len(middle) * middle**2)  # [K]
        moved.append(utility + np.nan_to_num((columns - middle) * slopes).sum(axis=1))
    gap = moved[0] - moved[1]
    low, high = statistics.subset_interval(gap) or (-np.inf, np.inf)
    p_value = float(statistics.sign_flip_p(gap[:, None])[0])
    utilities = [quality.model_utility(each) for each in means]
    return utilities[0] - utilities[1], low, high, p_value, len(gap)


def utility_parts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The (set, metric) pairs that the evaluation's note says its model utility is made of."""
    note = next((note for note in evaluation.notes if note.startswith(UTILITY)), None)
    if note is None:
        return []
    return [(name, metric) for name, _, metric in (part.partition(".") for part in note[len(UTILITY) :].split(", "))]
