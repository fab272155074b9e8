"""The loop every iterative solve shares: measure, stop, keep the state, go on from it later."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import ConfigurationError, DivergedError
from expunge.files import atomic_path
from expunge.gradients.hvp import Operator
from expunge.identity import Identity, check_seal, seal
from expunge.reading import foreign, read_text

TENSORS, SUMMARY = "solve.safetensors", "solve.json"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Point:
    """Where a solve stood: examples used so far over n, seconds since it began, relative residual."""

    passes: float
    seconds: float
    residual: float


@dataclass(frozen=True)
class Budget:
    """When a solve ends, and where it keeps its state meanwhile.

    tolerance: the relative residual that is enough. passes: how often all n examples may be used; seconds: how long it
    may take, both checked after each iteration. folder: where the state is written every `every` seconds and at the end; a
    later call with the same system and a larger budget goes on from there, to the same result. progress: told each Point.
    identity: what must be the same for that, besides the system itself.
    """

    tolerance: float = 1e-2
    passes: float = 50.0
    seconds: float = math.inf
    folder: Path | None = None
    every: float = 60.0
    progress: Callable[[Point], None] | None = None
    identity: Identity = Identity()

    def spent(self, point: Point) -> str | None:
        """Why a solve ends at `point`, or None if it goes on."""
        if point.residual <= self.tolerance:
            return "tolerance"
        if point.passes >= self.passes:
            return "passes"
        return "seconds" if point.seconds >= self.seconds else None


class Meter:
    """An operator that counts the products and examples asked of it, and the seconds since it was made."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.examples = self.products = 0
        self.begun = time.perf_counter()

    def __len__(self) -> int:
        return len(self.operator)

    def __call__(self, v: Tensor, indices: Sequence[int] | None = None, /) -> Tensor:
        self.examples += len(self.operator) if indices is None else len(indices)
        self.products += 1
        return self.operator(v, indices)

    def point(self, residual: float) -> Point:
        return Point(self.examples / len(self.operator), time.perf_counter() - self.begun, residual)


def iterate(
    meter: Meter,
    begin: Callable[[], State],
    step: Callable[[State], State | str],
    measure: Callable[[State], float],
    budget: Budget,
    identity: Identity,
) -> tuple[State, tuple[Point, ...], str]:
    """Repeat `step` until the budget is spent or it returns a reason to stop: the last state, the curve, the reason.

    Raises DivergedError as soon as the residual is not finite, ConfigurationError if the state kept in the budget's folder
    is damaged, or of another system (`identity`, and the budget's, tell; what differs is named).
    """
    identity = budget.identity | identity
    found = _restore(budget.folder, identity, meter) if budget.folder else None
    if found:
        state, curve = found
    else:
        state = begin()
        curve = [meter.point(measure(state))]
    kept = time.perf_counter()
    while not (reason := budget.spent(curve[-1])):
        new = step(state)
        if isinstance(new, str):
            reason = new
            break
        state = new
        curve.append(meter.point(measure(state)))
        if not math.isfinite(curve[-1].residual):
            raise DivergedError(
                f"The solve diverged after {curve[-1].passes:.1f} passes; nothing was changed. {ADVICE}"
            )
        if budget.progress:
            budget.progress(curve[-1])
        if budget.folder and time.perf_counter() - kept >= budget.every:
            _save(budget.folder, identity, meter, state, curve)
            kept = time.perf_counter()
    if budget.folder:
        _save(budget.folder, identity, meter, state, curve)
    return state, tuple(curve), reason


ADVICE = "Raise the damping λ, use the Gauss–Newton matrix, or allow more passes."


@dataclass(frozen=True)
class _Summary:
    """The part of a kept state that is JSON."""

    identity: dict[str, str]
    examples: int
    products: int
    curve: list[tuple[float, float, float]]
    devices: dict[str, str]


_SUMMARY = TypeAdapter(_Summary)


def _save(folder: Path, identity: Identity, meter: Meter, state: State, curve: Sequence[Point]) -> None:
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(state, temporary / TENSORS)
        counts = {"examples": meter.examples, "products": meter.products}
        devices = {name: str(tensor.device) for name, tensor in state.items()}
        points = [astuple(point) for point in curve]
        summary = {"identity": dict(identity.facts), **counts, "curve": points, "devices": devices}
        (temporary / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
        seal(temporary)


def _restore(folder: Path, identity: Identity, meter: Meter) -> tuple[State, list[Point]] | None:
    file = folder / SUMMARY
    if not file.is_file():
        return None
    check_seal(folder, TENSORS, SUMMARY)
    with foreign(file, ConfigurationError, what="is damaged"):
        value: Any = json.loads(read_text(file, ConfigurationError))
    try:
        summary = _SUMMARY.validate_python(value)
    except ValidationError as error:
        raise ConfigurationError(
            f"{file} is no state of this version's solves: {error.errors()[0]['msg']}. Remove {folder} to start over."
        ) from error
    identity.check(summary.identity, folder)
    curve = [Point(*values) for values in summary.curve]
    meter.examples, meter.products = summary.examples, summary.products
    meter.begun = time.perf_counter() - curve[-1].seconds
    with foreign(folder / TENSORS, ConfigurationError, what="is damaged"):
        tensors = load_file(folder / TENSORS)
        state = {name: tensor.to(summary.devices[name]) for name, tensor in tensors.items()}
    return state, curve
