"""Choose the demo's settings: the same number of settings for every method, on seeds that are never reported.

    python -m studies.demo.tune --seeds 100 101 --work work --out tuning.json

A setting's score is how far it is from the goal: the larger of the distance of forget extraction strength to the retrained
model's and of the share of model utility lost, averaged over the seeds. The lowest wins.
"""

import argparse
from pathlib import Path

import torch

from expunge.cli.console import printer
from expunge.files import write_json
from expunge.runs.demo import prepare, unlearned
from expunge.runs.record import Clock

FORGET_MODEL = {"epochs": 12, "lr": 2e-3, "batch_size": 32}  # the original's own recipe
GRID = {
    "gradascent": [
        {"steps": steps, "lr": lr} for steps, lr in ((10, 1e-4), (20, 1e-4), (30, 1e-4), (10, 3e-4), (40, 5e-5))
    ],
    "graddiff": [
        {"steps": 50, "lr": 1e-4, "gamma": 1.0},
        {"steps": 50, "lr": 1e-4, "gamma": 0.3},
        {"steps": 50, "lr": 2e-4, "gamma": 0.1},
        {"steps": 40, "lr": 1e-4, "gamma": 1.0},
        {"steps": 50, "lr": 5e-5, "gamma": 1.0},
    ],
    "npo": [
        {"steps": 50, "lr": 1e-4, "gamma": 1.0},
        {"steps": 50, "lr": 1e-4, "gamma": 0.3},
        {"steps": 50, "lr": 1e-4, "gamma": 0.1},
        {"steps": 50, "lr": 2e-4, "gamma": 0.1},
        {"steps": 50, "lr": 5e-5, "gamma": 1.0},
    ],
    "ngdiff": [
        {"steps": 50, "lr": 0.1},
        {"steps": 50, "lr": 0.07},
        {"steps": 50, "lr": 0.05},
        {"steps": 50, "lr": 2e-4, "optimizer": "adamw"},
        {"steps": 50, "lr": 2e-4, "optimizer": "adamw", "rate": "constant"},
    ],
    "taskvector": [
        {**FORGET_MODEL, "epochs": epochs, "lr": lr}
        for epochs, lr in ((12, 2e-3), (12, 1e-3), (12, 5e-4), (6, 2e-3), (24, 1e-3))
    ],
    "perta": [
        {**FORGET_MODEL, **own}
        for own in (
            {"p": 1},
            {"p": 2},
            {"p": 2, "debias": True},
            {"p": 2, "fisher": "per_example"},
            {"p": 2, "lr": 1e-3},
        )
    ],
    "npo+wagle": [
        {"steps": 50, "lr": 2e-4, "gamma": 0.1, "mask": {"ratio": 0.8}},
        {"steps": 50, "lr": 2e-4, "gamma": 0.1, "mask": {"ratio": 0.95}},
        {"steps": 50, "lr": 3e-4, "gamma": 0.1, "mask": {"ratio": 0.5}},
        {"steps": 50, "lr": 3e-4, "gamma": 0.1, "mask": {"ratio": 0.5, "gamma": "auto"}},
        {"steps": 50, "lr": 5e-4, "gamma": 0.1, "mask": {"ratio": 0.2}},
    ],
}


def main() -> None:
    """Print one line a setting and seed, then each method's best; write everything to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--methods", nargs="+", default=list(GRID))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, required=True, help="folder for the models; those there are used again")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for seed in arguments.seeds:
        with printer(quiet=True) as listener:
            world = prepare(arguments.work / f"seed{seed}", seed, listener, Clock())
            gold, start = (world.evaluations[role].metrics for role in ("retrained", "original"))
            print(f"seed {seed} retrained {figures(gold, start, gold)}", flush=True)
            for name in arguments.methods:
                for settings in GRID[name]:
                    found = unlearned(world, name, settings, listener, Clock())[1]["metrics"]
                    rows.append({"seed": seed, "method": name, "settings": settings, **figures(found, start, gold)})
                    print(rows[-1], flush=True)
    best = {}
    for name in arguments.methods:
        scored = [(mean_score(rows, name, settings), settings) for settings in GRID[name]]
        best[name] = min(scored, key=lambda pair: pair[0])
        print(f"{name}: {best[name][1]} at {best[name][0]:.3f}")
    write_json(arguments.out, {"rows": rows, "best": {name: settings for name, (_, settings) in best.items()}})


def figures(found: dict, start: dict, gold: dict) -> dict:
    """Extraction strengths, the share of utility kept, and the score of one model."""
    strength, kept = found["forget.extraction_strength"], found["model_utility"] / start["model_utility"]
    score = max(abs(strength - gold["forget.extraction_strength"]), 1 - kept)
    values = {"forget_es": strength, "retain_es": found["retain.extraction_strength"], "kept": kept, "score": score}
    return {name: round(value, 4) for name, value in values.items()}


def mean_score(rows: list[dict], name: str, settings: dict) -> float:
    scores = [row["score"] for row in rows if row["method"] == name and row["settings"] == settings]
    return sum(scores) / len(scores)


if __name__ == "__main__":
    main()
