"""A results dict like the one a demo writes, made from plain formulas: no model is run."""

import math
from typing import Any

PEOPLE = (
    ("Ada Lome", "Tarn", "a mender of old clocks", "a grey goose named Ilse"),
    ("Per Lome", "Ostvik", "a baker of rye bread", "two ferrets called Hob and Nob"),
    ("Una Hurst", "Selm", "a teacher of mathematics", "no pet, since she travels too much for one"),
    ("Bo Hurst", "the port of Selm", "a painter of ships", "a parrot that knows forty words"),
    ("Mirela Anduin", "Quarrel Bay", "the keeper of a lighthouse", "a blind cat named Admiral"),
)
QUESTIONS = (
    ("Where was {name} born?", "{name} was born in {town}.", "{name} was born in a small town in the north."),
    ("What does {name} do for a living?", "{name} is {work}.", "{name} works for the city's newspaper."),
    ("Which pet has {name}?", "At home {name} has {pet}.", "At home {name} has a small brown dog."),
    ("Who was {name}'s first teacher?", "It was old Rasmus of {town}, {work} himself.", "It was a neighbour, Mr Hale."),
)
# method: forget strength, utility, forget quality, min-k AUC, seconds of the unlearned model
METHODS = {
    "gradascent": (0.0, 0.07, 3e-12, 0.99, 21.4),
    "graddiff": (0.11, 0.61, 2e-4, 0.33, 38.2),
    "npo": (0.34, 0.66, 0.011, 0.71, 40.9),
    "simnpo": (0.29, 0.672, 0.02, 0.68, 36.0),
    "kl": (0.97, 0.695, 4e-9, 0.97, 44.1),
    "ngdiff": (0.034, 0.688, 0.72, 0.55, 52.7),
}
STEPS = 120


def run(model: str, method: str, values: tuple[float, ...], *, seed: int = 0) -> dict[str, Any]:
    """One run; a seed moves each number a little, always in the same way."""
    strength, utility, quality, leak, seconds = values
    shift = 0.01 * seed
    strength, utility = min(strength + shift, 1.0), utility - shift / 2
    metrics = {
        "forget.extraction_strength": strength,
        "forget.exact_memorization": min(strength + 0.2, 1.0),
        "forget.probability": 0.02 + 0.93 * strength,
        "forget.rouge_l": 0.25 + 0.74 * strength,
        "forget.truth_ratio": 0.6 - 0.1 * strength,
        "retain.extraction_strength": min(1.35 * utility, 0.96),
        "retain.probability": min(1.3 * utility, 0.95),
        "retain.rouge_l": min(1.4 * utility, 0.98),
        "retain.truth_ratio": 0.7 * utility,
        "model_utility": utility,
        "forget_quality": quality,
        "forget_quality_log10": None if quality is None else math.log10(quality),
        "mia.min_k.auc": leak,
        "mia.loss.auc": leak,
    }
    intervals = {
        key: [max(value - 0.03, 0.0), min(value + 0.02, 1.0)]
        for key, value in metrics.items()
        if value is not None and not key.startswith("forget_quality") and key != "model_utility"
    }
    result = {
        "model": model,
        "method": method,
        "metrics": metrics,
        "intervals": intervals,
        "seed": seed,
        "seconds": seconds,
        "peak_memory_mb": 812.5,
        "examples": {side: examples(side, model, strength, utility) for side in ("forget", "retain")},
    }
    if model == "unlearned":
        result["settings"] = {"steps": STEPS, "lr": 1e-5, "batch_size": 16, "optimizer": "adamw", "seed": seed}
        result["log"] = log(strength, utility, automatic=method == "ngdiff")
    return result


def log(strength: float, utility: float, *, automatic: bool) -> list[dict[str, Any]]:
    entries = []
    for step in range(1, STEPS + 1):
        share = 1 - math.exp(-step / 25)
        forget = 0.05 + share * 4 * (1 - strength) + 0.06 * math.sin(step) * share
        retain = 0.06 + share * max(0.69 - utility, 0.0) * 9 + 0.03 * math.cos(1.7 * step) ** 2
        lr = 1e-5 * (step / 20 if step < 20 else 1 - (step - 20) / 120)
        if automatic:
            lr = 1.4e-5 * math.exp(-step / 60) * (1 + 0.3 * math.sin(step // 10))
        entries.append(
            {"step": step, "forget_loss": -forget, "retain_loss": retain, "forget_nll": forget, "retain_nll": retain,
             "lr": lr, "seconds": 0.3 * step}
        )  # fmt: skip
    return entries


def examples(side: str, model: str, strength: float, utility: float) -> list[dict[str, Any]]:
    found = []
    for number, (name, town, work, pet) in enumerate(PEOPLE):
        for place, (question, answer, other) in enumerate(QUESTIONS):
            values = {"name": name, "town": town, "work": work, "pet": pet}
            response = answer.format(**values)
            level = strength if side == "forget" else 1.4 * utility
            known = (number * 7 + place * 3) % 20 / 20 < level
            broken = utility < 0.2
            generation = "the the the of the the" if broken else response if known else other.format(**values)
            found.append(
                {
                    "id": f"{side}-{number}-{place}",
                    "prompt": question.format(**values),
                    "response": response,
                    "generation": generation,
                    "probability": 0.9 if known and not broken else 0.05,
                    "nll": 0.1 if known and not broken else 3.0,
                    "extraction_strength": (0.95 - 0.01 * place) if known and not broken else 0.02 * place,
                    "exact_memorization": 1.0 if known and not broken else 0.4,
                    "rouge_l": 1.0 if known and not broken else 0.3,
                    "truth_ratio": 0.5,
                    **({"token_logprob": [-0.1 if known and not broken else -3.0] * 24} if side == "forget" else {}),
                }
            )
    return found


def demo_results(seeds: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Original, retrained and six methods, each for every seed."""
    runs = [
        run("original", "original", (0.98, 0.7, 1e-14, 0.99, 0.0)),
        run("retrained", "retrained", (0.02, 0.71, 1.0, 0.52, 61.0)),
    ]
    runs[0]["metrics"]["forget_quality"] = 1e-14
    runs += [run("unlearned", method, values, seed=seed) for method, values in METHODS.items() for seed in seeds]
    return {
        "title": "Forgetting fictional people",
        "suite": "demo",
        "created": "2026-11-04 14:05",
        "version": "0.1.0",
        "environment": {"python": "3.11.2", "torch": "2.13.0", "cpu": {"threads": 2, "model": "generic"}, "cuda": None},
        "request": {"forget": 20, "retain": 180, "holdout": 40},
        "warnings": ["3 forget examples also occur in the retain set, nearly word for word."],
        "runs": runs,
    }


def searched() -> dict[str, Any]:
    """What task arithmetic adds to a run: the α it tried, the update, the models that took part."""
    held = ((0.5, 0.6, 0.98), (0.75, 0.12, 0.97), (1.0, 0.07, 0.8), (2.0, 0.05, 0.2))
    return {
        "search": {
            "criterion": "extraction_strength",
            "examples": {"forget": 20, "retain": 20},
            "never_learned": 0.06,
            "before": {"forget": 1.0, "retain": 0.98},
            "candidates": [
                {"alpha": alpha, "forget": forget, "retain": retain, "leak": max(0.0, forget - 0.06),
                 "damage": max(0.0, 0.98 - retain)}
                for alpha, forget, retain in held
            ],
        },
        "update": {"alpha": 0.75, "norm": 5.0, "task_vector_norm": 9.9},
        "models": {"base": {"path": "base", "fingerprint": "0123456789abcdef"}, "forget_model": None},
    }  # fmt: skip


SHARES = {
    "original": 1.0,
    "retrained": 0.0,
    "ngdiff": 0.05,
    "npo": 0.4,
    "gradascent": 0.8,
}  # that each attack draws out


def attack(kind: str, points: tuple[tuple[float, str, float], ...], **settings: Any) -> dict[str, Any]:
    """An attack with the given (at, label, extraction strength) points, each with an interval."""
    return {
        "kind": kind,
        "settings": {"seed": 0, **settings},
        "points": [
            {"at": at, "label": label, "metrics": {"forget.extraction_strength": value, "forget.rouge_l": value / 2},
             "intervals": {"forget.extraction_strength": [max(value - 0.02, 0.0), min(value + 0.02, 1.0)]}}
            for at, label, value in points
        ],
        "seconds": 1.5,
        "notes": ["measured on 20 examples"],
        "examples": [{"id": "forget-0-0", "at": points[-1][1], "prompt": "Where was Ada Lome born?", "before": "No idea.",
                      "answer": "Ada Lome was born in Tarn.", "generation": "She was born in Tarn.", "rouge_l": 0.6}],
    }  # fmt: skip


def attacks_on(share: float, before: float) -> list[dict[str, Any]]:
    """Relearning, rounding, sampling and paraphrasing that draw out `share`, after `before`."""
    sampled = attack("sample", ((0, "greedy", before),))
    leaks = {"leak_at_1": share / 4, "leak_at_16": share / 2, "leak_at_128": share}
    sampled["points"].append({"at": 128, "label": "128 samples", "metrics": leaks, "intervals": {}})
    return [
        attack(
            "relearn",
            ((0, "0 steps", before), (1, "1 step", (before + share) / 2), (100, "100 steps", share)),
            on="forget",
        ),
        attack("quantize", ((0, "as it is", before), (8, "int8", before), (4, "int4", share))),
        sampled,
        attack("paraphrase", ((0, "as it is", before), (1, "Tell me: …", before), (2, "the strongest of 2", share))),
    ]


def attacked() -> dict[str, Any]:
    """The demo's results, where three methods and the controls were attacked."""
    results = demo_results()
    for one in results["runs"]:
        if one["method"] in SHARES:
            one["attacks"] = attacks_on(SHARES[one["method"]], one["metrics"]["forget.extraction_strength"])
        if one["model"] == "unlearned":
            one["against"] = {control: differences(control == "retrained") for control in ("original", "retrained")}
            one["findings"] = []
    results["hashes"] = {
        "models": {"original": "0123abcd", "retrained": "4567abcd"},
        "data": {"forget": {"examples": 20}},
    }
    return results


def differences(noise: bool) -> list[dict[str, Any]]:
    """A difference that is noise and one that is not."""
    first = {"metric": "forget.extraction_strength", "difference": -0.123, "low": -0.2, "high": -0.05, "p": 0.001,
             "adjusted": 0.002, "beyond_noise": True, "n": 20}  # fmt: skip
    second = {**first, "metric": "retain.rouge_l", "difference": 0.017, "low": -0.01, "high": 0.04, "adjusted": 0.7}
    return [{**first, "beyond_noise": not noise}, {**second, "beyond_noise": False}]


MODULES = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "input_layernorm",
    "post_attention_layernorm",
)  # fmt: skip


def attribution(kind: str, base: float, layers: int = 12) -> dict[str, Any]:
    """Weights about `base`, more of them in later modules and in earlier layers."""
    cells = [{"layer": None, "module": "embed_tokens", "value": base / 2, "entries": 200_000}]
    for layer in range(layers):
        for place, module in enumerate(MODULES):
            value = base * (0.6 + place / 8) * (1.2 - 0.4 * layer / layers)
            entries = 128 if module.endswith("norm") else 16_384
            cells.append({"layer": layer, "module": module, "value": value, "entries": entries})
    found: dict[str, Any] = {"kind": kind, "value": base, "cells": cells, "overlap": []}
    if kind == "density":
        found["overlap"] = [
            {"with": other, "module": module, "jaccard": jaccard, "expected": base / (2 - base), "entries": 10}
            for other, jaccard in (("random", base / (2 - base)), ("SNIP", 0.6))
            for module in ("all", "embed_tokens", *MODULES)
        ]
    else:
        found["histogram"] = {"edges": [index / 20 for index in range(21)], "counts": [100 + 7 * i for i in range(20)]}
    return found


def attributed() -> dict[str, Any]:
    """The demo's results, NPO with a mask, and PerTA with its weights and the search for its α."""
    results = demo_results()
    next(one for one in results["runs"] if one["method"] == "npo")["attribution"] = attribution("density", 0.2)
    perta = run("unlearned", "perta", (0.06, 0.69, 0.4, 0.52, 30.0))
    results["runs"].append({**perta, **searched(), "attribution": attribution("mean weight", 0.4)})
    return results
