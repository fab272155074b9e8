"""CPU time of curvature products and of the solves made of them, on a demo-size Llama with a LoRA adapter, one thread.

`over_gradient` is the cost of one product over that of one gradient of the same 16 examples, the median over the turns.
Two adapters: r = 8 on every linear layer but the last, and r = 4 on the query and value projections. Then
(H + λI)Δ = b is solved over a set of fictional people for the removal of a tenth of them, H being the Gauss–Newton matrix
and λ a multiple of its mean eigenvalue: for each solver the passes over the set and CPU seconds at each residual.
`path` solves for all candidates of λ at once. Prints one JSON line.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import process_time
from typing import Any

import torch
from common import BATCH, cpu_ms, middle, rounded
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from expunge.data import Encoded, Encoder
from expunge.data.benchmarks.fictional import FictionalPeople, build_tokenizer, demo_config, plain_texts
from expunge.gradients.hvp import Curvature, largest_eigenvalue, mean_eigenvalue
from expunge.gradients.iterate import Budget, Point
from expunge.gradients.lanczos import FACTORS, path
from expunge.gradients.solve import Solution, cg, sgd

ADAPTERS = {"r8_all_linear": (8, "all-linear"), "r4_q_v": (4, ["q_proj", "v_proj"])}
ROOM = 384  # padded tokens a pass, which is what suits a CPU
STEPS = 60  # of training before the curvature is taken
SHOWN = (0.5, 0.3, 0.1, 0.03, 0.01)  # residuals a curve is read off at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9, help="how often each product is measured")
    parser.add_argument("--passes", type=float, default=15, help="the most a solver may use the set")
    parser.add_argument("--factor", type=float, default=10.0, help="λ over the mean eigenvalue")
    print(json.dumps(rounded(measure(parser.parse_args()))))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    people = FictionalPeople.make(pretrain=20, learned=20, general=5)
    tokenizer = build_tokenizer(plain_texts(people.pretrain + people.forget + people.retain))
    items = Encoder(tokenizer).examples(people.forget + people.retain)
    costs, solves = {}, {}
    for name, (rank, targets) in ADAPTERS.items():
        curvature = trained(items, len(tokenizer), rank, targets)
        costs[name] = product_costs(replace(curvature, items=items[:BATCH]), arguments.turns)
        solves[name] = solve_all(curvature, len(people.forget), arguments)
    return {
        "benchmark": "ihvp",
        "over_gradient": {name: cost["gauss_newton"] / cost["gradient"] for name, cost in costs.items()},
        "hessian_over_gradient": {name: cost["hessian"] / cost["gradient"] for name, cost in costs.items()},
        "goal_over_gradient": 4,
        "cpu_ms": costs,
        "solves": solves,
        "examples": len(items),
        "batch": BATCH,
        "threads": 1,
    }


def trained(items: list[Encoded], vocabulary: int, rank: int, targets: Any) -> Curvature:
    """The curvature of a model whose adapter has learned a little about the items."""
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(demo_config(vocabulary)), config)
    curvature = Curvature(model, items, batch_size=BATCH, room=ROOM)
    params = list(curvature.params.values())
    optimizer = torch.optim.AdamW(params, lr=5e-3, weight_decay=0.0)
    for step in range(STEPS):
        draw = torch.randperm(len(items), generator=torch.Generator().manual_seed(step))[:BATCH].tolist()
        slopes = curvature.gradient(draw).split(curvature.sizes)
        for param, slope in zip(params, slopes, strict=True):
            param.grad = slope.view_as(param)
        optimizer.step()
    return curvature


def product_costs(curvature: Curvature, turns: int) -> dict[str, float]:
    """Median CPU milliseconds of one gradient and of each kind of product over the curvature's items, measured in turn."""
    v = torch.randn(sum(curvature.sizes))
    work: dict[str, Callable[[], Any]] = {"gradient": curvature.gradient}
    for kind in ("gauss_newton", "hessian"):
        product = replace(curvature, kind=kind)
        work[kind] = lambda product=product: product(v)
    found: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(turns + 1):
        for name, one in work.items():
            spent = cpu_ms(one)
            if turn:  # the first warms up
                found[name].append(spent)
    return {name: middle(values) for name, values in found.items()}


def solve_all(curvature: Curvature, removed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    b = curvature.gradient(range(removed)) * (removed / len(curvature))
    mean = mean_eigenvalue(curvature, b)
    top = largest_eigenvalue(curvature, b, indices=range(0, len(curvature), 4))
    damping = arguments.factor * mean
    budget = Budget(tolerance=SHOWN[-1], passes=arguments.passes)
    found: dict[str, Any] = {"parameters": len(b), "mean_eigenvalue": mean, "largest_over_mean": top / mean}
    by_sgd = partial(sgd, check=2 * len(curvature) // BATCH)  # a third of its products measure
    for name, solve in (("cg", cg), ("sgd", by_sgd)):
        found[name] = curve(
            lambda watch, solve=solve: solve(curvature, b, damping, budget=replace(budget, progress=watch))
        )
    start = process_time()
    solutions = path(curvature, b, [factor * mean for factor in FACTORS], budget=budget)
    reached = {f"{solution.damping / mean:g}": solution.residual for solution in solutions}  # pyrefly: ignore
    found["path"] = {"residual_at_factor": reached, "cpu_s": process_time() - start}
    return found


def curve(solve: Callable[[Callable[[Point], None]], Solution]) -> dict[str, Any]:
    """For each residual of SHOWN that was reached: [passes, CPU seconds] at the first point within it."""
    start = process_time()
    points: list[tuple[Point, float]] = []
    solve(lambda point: points.append((point, process_time() - start)))
    within = {level: next(((p.passes, s) for p, s in points if p.residual <= level), None) for level in SHOWN}
    last = points[-1]
    return {"residual": {f"{level:g}": at for level, at in within.items() if at}} | {
        "last": {"residual": last[0].residual, "passes": last[0].passes, "cpu_s": last[1]}
    }


if __name__ == "__main__":
    main()
