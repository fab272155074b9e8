"""What a closed-form update tells of itself: the solve, its residuals, the λ tried, and how far the adapter has gone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.data.edited import Edited
from expunge.errors import ConfigurationError, DivergedError
from expunge.gradients import Budget, Curvature, Point, Solution
from expunge.gradients.damped import losses
from expunge.methods.contract import Context
from expunge.models import Loaded
from expunge.reading import parse_json, read_text
from expunge.training import History

if TYPE_CHECKING:
    from expunge.methods.llmeraser import LLMEraser

ADVICE = "--method retrain-adapter is exact"
MANY = 0.4  # share of the instances: the largest request of the paper
FAR = 0.5  # ‖Δ‖/‖Θ̂‖ added up over requests, from which a first-order step may be off by much
MEMORISED = 0.1  # nats a token: nine tenths of the probability


def begun(
    settings: "LLMEraser", loaded: Loaded, edited: Edited, operator: Curvature, b: Tensor, now: Curvature
) -> History:
    """A history that knows the system: sizes, ‖b‖, and what share of the instances to forget is known by heart."""
    first, drawn = range(len(edited.before)), settings.drawn(len(now))
    known = losses(operator, first)  # they stand first
    found = {
        "solver": settings.solver,
        "curvature": settings.curvature,
        "instances": len(operator),
        "parameters": sum(operator.sizes),
        "removed": sum(new is None for new in edited.after),
        "edited": len(edited.before),
        "share": edited.share,
        "b_norm": b.norm().item(),
        "theta_norm": operator.flat(operator.params).norm().item(),
        "loss_before": losses(now, drawn).mean().item(),
        "forget_nll": known.mean().item(),
        "memorised": (known < MEMORISED).double().mean().item(),
        "moved_before": moved_before(loaded.folder),
        "rounds": [],
    }
    history = History(found={"solve": found})
    if any(item.cut for item in (*(operator.items[i] for i in first), *(now.items[i] for i in drawn))):
        history.notes.append("some instances were cut to max_length: give the one the adapter was trained with")
    if edited.share > MANY:
        history.notes.append(
            f"{len(edited.before)} of {len(operator)} instances ({edited.share:.0%}) are to be removed or changed: "
            f"influence functions are for small edits (at most {MANY:.0%} in the paper). {ADVICE}"
        )
    return history


def budget(settings: "LLMEraser", context: Context, number: int, operator: Curvature) -> Budget:
    """The budget of one round's solve; its state lies beside the run, where --resume finds it."""
    folder = context.checkpoint and context.checkpoint / f"round_{number}"
    products = math.ceil(settings.passes * len(operator) / len(settings.drawn(len(operator))))
    done: list[Point] = []

    def tell(point: Point) -> None:
        done.append(point)
        if context.progress:
            entry = {"step": len(done) - 1, "round": number, "residual": point.residual}
            context.progress(entry, max(products, len(done)))

    return Budget(
        settings.tolerance, settings.passes, settings.seconds, folder, progress=tell, identity=context.identity
    )


def add(
    history: History,
    solution: Solution,
    tried: Sequence[dict[str, Any]],
    best: dict[str, Any],
    b: Tensor,
    each: float | Tensor,
) -> None:
    """One round: the solution taken, its curve as lines of the log, and every candidate.

    `best` holds the residuals as measured; the curve holds those of the solver's own recurrence.
    """
    found = history.found["solve"]
    number = len(found["rounds"])
    found["rounds"].append(
        {
            **best,
            "b_norm": b.norm().item(),
            "unit": torch.as_tensor(each).double().mean().item(),
            "delta_norm": solution.delta.norm().item(),
            "products": solution.products,
            "seconds": solution.curve[-1].seconds,
            "stopped": solution.stopped,
            "negative_curvature": solution.negative_curvature,
            "candidates": list(tried),
            "curve": [[point.passes, point.seconds, point.residual] for point in solution.curve],
        }
    )
    for point in solution.curve:
        entry = {"passes": point.passes, "seconds": point.seconds, "residual": point.residual}
        history.log.append({"step": len(history.log), "round": number, **entry})
    if solution.negative_curvature:
        history.notes.append(
            "the Hessian has negative curvature at this λ: Δ is the last step before it. curvature=gauss_newton has none"
        )
    edges = [row["factor"] for row in tried]
    if len(edges) > 1 and best["factor"] in (min(edges), max(edges)):
        side = "smallest" if best["factor"] == min(edges) else "largest"
        history.notes.append(f"round {number + 1}: the {side} factor of λ tried, {best['factor']:g}, was the best")


def left_out(history: History, number: int, error: DivergedError) -> None:
    """A round after the first was refused: what came before it stands."""
    why = str(error).split(". ")[0].rstrip(".")
    history.notes.append(f"round {number + 1} of the solve was left out, the {number} before it stand: {why}")


def loss(history: History) -> float:
    """The edited set's loss after the last round."""
    return history.found["solve"]["rounds"][-1]["loss"]


def ended(history: History, delta: Tensor) -> History:
    """The history with what the whole update amounts to, and the warning that first order is no longer enough."""
    found = history.found["solve"]
    rounds = found["rounds"]
    ratio = delta.norm().item() / found["theta_norm"]
    moved = found["moved_before"] + ratio
    found |= {"ratio": ratio, "moved": moved, "loss_after": rounds[-1]["loss"] if rounds else found["loss_before"]}
    if not rounds:
        history.log.append({"step": 0, "round": 0, "passes": 0.0, "seconds": 0.0, "residual": 0.0})
        history.stopped = "the edit changes nothing: b = 0"
    else:
        history.stopped = f"‖Δ‖/‖Θ‖ = {ratio:.3g}, relative residual {rounds[-1]['residual']:.2g}"
        history.notes.append(
            f"loss on the edited fine-tuning set {found['loss_before']:.4f} → {found['loss_after']:.4f} nats a token; "
            f"λ = {rounds[-1]['damping']:.3g}; {found['memorised']:.0%} of the instances to forget were known by heart"
        )
        if found["loss_after"] > found["loss_before"]:
            history.notes.append(
                "the loss on the edited fine-tuning set has risen: by this measure the update does more harm than good. "
                f"Try larger factors of λ, or a larger subset. {ADVICE}"
            )
    history.log[-1]["moved"] = moved
    if moved > FAR:
        earlier = f", {found['moved_before']:.2f} of it in earlier requests" if found["moved_before"] else ""
        history.notes.append(
            f"the adapter has moved by {moved:.2f} times its norm{earlier}: beyond {FAR:g} a first-order update may "
            f"be off. {ADVICE}"
        )
    return history


def moved_before(folder: Path) -> float:
    """‖Δ‖/‖Θ̂‖ added up over the runs that made the adapter in `folder`; 0 where it was trained, or made elsewhere."""
    log = folder.parent / "log.jsonl"
    if not (folder.parent / "run.json").is_file() or not log.is_file():
        return 0.0
    lines = read_text(log, ConfigurationError).splitlines()
    if not lines:
        return 0.0
    last = parse_json(lines[-1], f"{log}, last line", ConfigurationError, infinite=True)
    moved = last.get("moved", 0.0) if isinstance(last, dict) else None
    if not isinstance(moved, int | float) or moved < 0:
        raise ConfigurationError(f"{log} is damaged: its last line holds no number `moved` of at least 0.")
    return float(moved)
