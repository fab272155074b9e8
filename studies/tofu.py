"""What the studies on a real model share: SmolLM2 tuned on part of TOFU, with and without what is to be forgotten."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from expunge import config
from expunge.evaluation import Evaluation, evaluate
from expunge.evaluation.suites import Suite
from expunge.evaluation.suites.suite import subsample
from expunge.files import atomic_path
from expunge.methods import Context, method
from expunge.models import load
from expunge.models.saving import save_model
from expunge.request import Example, Request, read_examples
from expunge.runs import finetune, make_suite
from expunge.runs.record import Listener, result


@dataclass(frozen=True)
class World:
    """One set of models and data: folders of θ_0, θ_full and the retrained model, the request, what is reported on."""

    name: str
    seed: int
    base: Path
    full: Path
    retrained: Path
    request: Request
    suite: Suite
    work: Path
    finetuning: Mapping[str, Any]
    forget_model: Path | None = None
    max_length: int = 512


def tofu_world(split: str, data: Path, work: Path, own: dict, listener: Listener) -> tuple[World, Request]:
    """Models, request and suite of one split, and the examples that settings may be chosen on, which the suite leaves out.

    own: the part `smollm2` of studies/perta/study.yaml. Models are made in `work`/`split` unless they are there.
    """
    counts, place = own["splits"][split], work / split
    sources = {"forget": data / f"{split}.json", "retain": data / f"retain{100 - int(split[-2:])}.json"}
    sets = {name: read_examples(path)[: counts[name]] for name, path in sources.items()}
    sets["holdout"] = read_examples(data / f"holdout{split[-2:]}.json")[: counts["forget"]]
    options: dict[str, Any] = {"settings": own["finetuning"], "max_length": own["max_length"], "listener": listener}
    learned = {"full": ("forget", "retain"), "retrained": ("retain",), "forgetonly": ("forget",)}
    for name, parts in learned.items():
        if not (place / name).exists():
            files = [write_lines(place / f"{part}.jsonl", sets[part]) for part in parts]
            finetune(work / "base", files, out=place / name, **options)
    request = Request(sets["forget"], sets["retain"], sets["holdout"])
    chosen = choosing(request, 0, counts.get("choose", own["choose"]))
    whole = make_suite("tofu", data=data, split=split, max_new_tokens=own["max_new_tokens"])
    seen = {name: {example.key for example in sets[name]} for name in ("forget", "retain")}
    parts = {
        name: [example for example in rows if name not in seen or example.key in seen[name]]
        for name, rows in whole.sets.items()
    }
    rest = {name: without(rows, chosen) if name in seen else tuple(rows) for name, rows in parts.items()}
    limit = counts.get("evaluate", own["evaluate_limit"])
    limits = {"forget": 2 * limit, "holdout": 2 * limit}
    suite = replace(whole, sets={name: subsample(rows, limits.get(name, limit)) for name, rows in rest.items()})
    folders = {"base": work / "base", "full": place / "full", "retrained": place / "retrained"}
    world = World(
        split, 0, request=request, suite=suite, work=place, finetuning=own["finetuning"],
        forget_model=place / "forgetonly", max_length=own["max_length"], **folders,
    )  # fmt: skip
    return world, chosen


def control(world: World, folder: Path, role: str, runs: Sequence[dict]) -> dict[str, Any]:
    gold = Evaluation.from_dict(runs[0]) if runs else None
    return result(role, role, evaluate(load(folder), world.suite, max_length=world.max_length, reference=gold))


def baseline(world: World, name: str, settings: dict, gold: Evaluation | None, listener: Listener) -> dict[str, Any]:
    """A descent from the full model with fixed settings; the model is kept in models/."""
    made, place = method(name.split("+")[0], {"seed": world.seed, **settings}), world.work / "models" / name
    history = None
    if not place.exists():
        loaded = load(world.full)
        history = made(loaded, world.request, Context(loaded.encoder(world.max_length), progress=listener.step))
        place.parent.mkdir(exist_ok=True)
        with atomic_path(place) as temporary:
            save_model(loaded, temporary)
    found = evaluate(load(place), world.suite, max_length=world.max_length, reference=gold)
    return result(name, "unlearned", found, history=history, settings=config.to_dict(made))


def choosing(request: Request, seed: int, most: int | None = None) -> Request:
    """Half of the forget examples (at most so many), and as many retain examples, that α is chosen on."""
    generator = torch.Generator().manual_seed(1000 + seed)
    count = min(len(request.forget) // 2, most or len(request.forget))

    def drawn(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(examples[index] for index in torch.randperm(len(examples), generator=generator)[:count].tolist())

    return Request(drawn(request.forget), drawn(request.retain))


def without(examples: Sequence[Example], chosen: Request) -> tuple[Example, ...]:
    taken = {example.key for example in (*chosen.forget, *chosen.retain)}
    return tuple(example for example in examples if example.key not in taken)


def write_lines(path: Path, examples: Sequence[Example]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"prompt": example.prompt, "response": example.response}) + "\n" for example in examples)
    path.write_text("".join(lines), encoding="utf-8")
    return path
