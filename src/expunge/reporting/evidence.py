"""What the claims rest on: intervals of how much is left, how much was kept and what membership tests see, and how many
examples it would take where they are too wide.

An interval is over the forget examples where there are enough of them. A request of a few examples is judged by their
tokens: what that says is of these very examples, which are the request.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.evaluation import statistics
from expunge.reporting.metrics import percent
from expunge.reporting.results import Row, floor
from expunge.reporting.thresholds import ALPHA, CLOSE, TELLING

EXAMPLES, TOKENS = "examples", "blocks of tokens"
# examples all of which may be free of a leak that one in ten has: (1 − CLOSE)^n > ALPHA below
ENOUGH = math.ceil(math.log(ALPHA) / math.log(1 - CLOSE))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A 95 % interval and what it is taken over.

    n: how many of `unit`; None where the results do not say. needed: how many examples it takes at least for the claim to
    be decided, None where it is.
    """

    low: float
    high: float
    n: int | None = None
    unit: str = EXAMPLES
    needed: int | None = None

    @property
    def said(self) -> str:
        """The interval in per cent, or why there is none, as a part of a sentence."""
        over = "" if self.n is None else f", over {self.n} {self.unit}"
        if not (math.isfinite(self.low) or math.isfinite(self.high)):
            return f"no interval{over}"
        if not math.isfinite(self.high):
            return f"95 % interval from {percent(self.low)} on{over}"
        return f"95 % interval {percent(self.low)} to {percent(self.high)}{over}"

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def left(row: Row, original: Row | None, retrained: Row | None, key: str | None) -> Evidence | None:
    """The interval of `remaining`, (u − r)/(o − r), of the forget measure `key`; None where the results have none.

    Over examples, u − r is resampled, both models' answers to an example together, and divided by o − r of the sets'
    means. Below `ENOUGH` examples, over blocks of tokens: u, r and o are the recorded answers' geometric mean probability
    per token, and the interval of log u − log o is that of `statistics.subset_interval`.
    """
    before, goal = original.mean(key) if original and key else None, retrained.mean(key) if retrained and key else None
    goal = floor(key) if goal is None else goal
    if key is None or before is None or before - goal <= 0:
        return None
    name, _, measure = key.partition(".")
    mine, theirs = _values(row, name, measure), _values(retrained, name, measure)
    if not mine:
        return _from_cell(row, key, goal, before - goal)
    gaps = np.array([value - theirs.get(example, goal) for example, value in mine.items()])
    n = len(gaps)
    if n < ENOUGH and name == "forget":
        by_tokens = _left_by_tokens(row, original, retrained)
        if by_tokens is not None:
            return by_tokens
    if n >= statistics.FEW:
        low, high = statistics.skewed_interval(gaps)
    else:
        low, high = statistics.subset_interval(gaps) or (-math.inf, math.inf)
    low, high = low / (before - goal), high / (before - goal)
    return Evidence(low=low, high=high if n >= ENOUGH else math.inf, n=n, needed=ENOUGH if n < ENOUGH else None)


def _from_cell(row: Row, key: str, goal: float, span: float) -> Evidence | None:
    bounds = interval_of(row, key)
    return None if bounds is None else Evidence(low=(bounds[0] - goal) / span, high=(bounds[1] - goal) / span)


def _left_by_tokens(row: Row, original: Row | None, retrained: Row | None) -> Evidence | None:
    mine, before, gold = (_tokens(each) for each in (row, original, retrained))
    shared = [key for key in mine if len(mine[key]) == len(before.get(key, ()))]
    if not shared or (retrained is not None and any(key not in gold for key in shared)):
        return None
    changes = statistics.block_means([np.array(mine[key]) - np.array(before[key]) for key in shared])
    bounds = statistics.subset_interval(changes)
    if bounds is None:
        return None
    known = math.exp(_mean([before[key] for key in shared]))
    goal = math.exp(_mean([gold[key] for key in shared])) if retrained is not None else 0.0
    if known - goal <= 0:
        return None
    low, high = ((known * math.exp(bound) - goal) / (known - goal) for bound in bounds)
    return Evidence(low=low, high=high, n=len(changes), unit=TOKENS)


def _mean(rows: Sequence[Sequence[float]]) -> float:
    return float(statistics.block_means([np.array(row) for row in rows]).mean())


def _rows(row: Row | None, name: str) -> list[list[Mapping[str, Any]]]:
    """The examples of a set in each of the row's runs that has them."""
    runs = row.runs if row is not None else ()
    return [rows for run in runs if (rows := (run.get("examples") or {}).get(name))]


def _key(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return row.get("id"), row.get("prompt"), row.get("response")


def _values(row: Row | None, name: str, measure: str) -> dict[Any, float]:
    """The measure of each example of a set, the mean over the row's runs."""
    found: dict[Any, list[float]] = {}
    for rows in _rows(row, name):
        for each in rows:
            value = each.get(measure)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(_key(each), []).append(float(value))
    return {key: sum(values) / len(values) for key, values in found.items()}


def _tokens(row: Row | None) -> dict[Any, list[float]]:
    """The log-probabilities of each forget example's tokens, of the first run that kept them."""
    rows = next(iter(_rows(row, "forget")), [])
    return {_key(each): list(each["token_logprob"]) for each in rows if each.get("token_logprob")}


def interval_of(row: Row, key: str) -> tuple[float, float] | None:
    """The 95 % interval of a number: the run's, or the mean of the runs' where there are several."""
    pairs = [pair for run in row.runs if (pair := (run.get("intervals") or {}).get(key)) and None not in pair]
    if not pairs:
        return None
    return sum(pair[0] for pair in pairs) / len(pairs), sum(pair[1] for pair in pairs) / len(pairs)


def change(row: Row, control: str, key: str) -> Evidence | None:
    """The interval of the row's difference to a control, the mean of its runs'; None where it was not compared.

    An infinite one where the examples are too few for any.
    """
    found = [
        each for run in row.runs for each in (run.get("against") or {}).get(control) or [] if each["metric"] == key
    ]
    if not found:
        return None
    lows = [-math.inf if each["low"] is None else float(each["low"]) for each in found]
    highs = [math.inf if each["high"] is None else float(each["high"]) for each in found]
    n = int(found[0]["n"]) if found[0].get("n") is not None else None
    low, high = sum(lows) / len(lows), sum(highs) / len(highs)
    return Evidence(low=low, high=high, n=n, needed=found[0].get("needed"))


def missing(evidence: Evidence, value: float, line: float) -> str:
    """ "Not known: too few examples", and how many it takes to tell `value` from `line`.

    By how an interval narrows with √n, and at least as many as the test needs at all.
    """
    needed = evidence.needed or 0
    half = (evidence.high - evidence.low) / 2
    if evidence.n and evidence.unit == EXAMPLES and math.isfinite(half) and value != line:
        needed = max(needed, math.ceil(evidence.n * (half / (value - line)) ** 2))
    number = "" if evidence.n is None else f" ({evidence.n} {evidence.unit})"
    if evidence.unit == TOKENS:
        needed = ENOUGH
    takes = f"; it takes about {needed} examples" if needed > (evidence.n or 0) or evidence.unit == TOKENS else ""
    return f"Not known: too few examples{number}{takes}."


def membership(row: Row, key: str, value: float, goal: float, gold: bool) -> Evidence | None:
    """The interval of how far an AUC is from the one to reach; None where the results have none.

    needed: how many examples of each set it takes for so wide an interval to fit within ± TELLING, were the gap 0.
    """
    paired = change(row, "retrained", key) if gold else None
    bounds = interval_of(row, key)
    if paired is not None:
        low, high, n = paired.low, paired.high, paired.n
    elif bounds is not None:
        low, high, n = bounds[0] - goal, bounds[1] - goal, _count(row)
    else:
        return None
    half = (high - low) / 2
    inside = low >= -TELLING and high <= TELLING
    needed = None
    if not inside and not (low > 0 or high < 0) and n:
        grown = math.ceil(n * (half / TELLING) ** 2) if math.isfinite(half) else 0
        needed = max(grown, math.ceil(0.25 * (1.96 / TELLING) ** 2) if n < statistics.FEW else statistics.FEW)
    return Evidence(low=low, high=high, n=n, needed=needed)


def _count(row: Row) -> int | None:
    sizes = [len(rows[0]) for name in ("forget", "holdout") if (rows := _rows(row, name))]
    return min(sizes) if len(sizes) == 2 else None


def kept(row: Row, original: Row | None, key: str | None) -> Evidence | None:
    """The interval of `kept`, the share of the original's utility; None where the results have none.

    From the paired difference to the original; without it, from the row's own interval.
    """
    before = original.mean(key) if original is not None and key is not None else None
    least = floor(key)
    if key is None or before is None or before <= least:
        return None
    paired = change(row, "original", key)
    span = before - least
    if paired is not None:
        return Evidence(low=1 + paired.low / span, high=1 + paired.high / span, n=paired.n, needed=paired.needed)
    return None
