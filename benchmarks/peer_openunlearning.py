"""Measure the public framework OpenUnlearning: CPU-ms per GradDiff and NPO step, CPU-s per TOFU evaluation.

The framework is a checkout given by --peer; its own trainers, data sets, collator, evaluator and configuration files run,
with only what a single CPU thread needs changed: fp32, plain AdamW, no logging, data from local files. Run it with a
Python that has torch, transformers, accelerate, datasets, rouge-score, scipy, scikit-learn and hydra-core; deepspeed and
lm-eval, which the framework imports but does not use here, may be absent. Prints one JSON line.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import sys
import tempfile
import types
from importlib import import_module
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import torch
import transformers
from common import BATCH, EPOCHS, material, middle, rounded

METRICS = (
    "forget_Q_A_Prob",
    "forget_Q_A_ROUGE",
    "forget_Truth_Ratio",
    "exact_memorization",
    "extraction_strength",
    "mia_min_k",
    "model_utility",
)
WARM_UP = 2  # steps not counted


def main() -> None:
    arguments = read_arguments()
    prepare_imports(arguments.peer)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        folder = Path(scratch)
        if arguments.model:
            model, data = arguments.model, arguments.rows
        else:
            model, data = material(
                folder / "material", arguments.data, epochs=EPOCHS if "evaluate" in arguments.do else 0
            )
        framework = Framework(arguments.peer, model, data, folder)
        result: dict[str, Any] = {"transformers": transformers.__version__, "torch": torch.__version__}
        if "step" in arguments.do:
            result["step_cpu_ms"] = {
                name.lower(): framework.step_cpu_ms(name, arguments.steps) for name in ("GradDiff", "NPO")
            }
        if "evaluate" in arguments.do:
            result["evaluation_cpu_s"], result["metrics"] = framework.evaluation()
    print(json.dumps(rounded(result, 8)))


class Framework:
    """OpenUnlearning on one model folder and one folder of TOFU's files."""

    def __init__(self, path: Path, model: Path, data: Path, scratch: Path) -> None:
        self.path, self.model, self.scratch = path, model, scratch
        self.data, self.evals, self.trainer = (import_module(name) for name in ("data", "evals", "trainer"))
        self.read_from(data)

    def read_from(self, folder: Path) -> None:
        """Let its data sets read local files in place of the hub's.

        A space before each answer gives the tokens of "Answer: ..." that its template ("Answer:" here) leaves out.
        """
        from datasets import Dataset

        loaded: dict[str, Dataset] = {}

        def load(path: str, name: str, split: str) -> Dataset:
            if name not in loaded:
                lines = (folder / f"{name}.json").read_text().splitlines()
                loaded[name] = Dataset.from_list([with_space(json.loads(line)) for line in lines])
            return loaded[name]

        self.data.qa.load_hf_dataset = load

    def configuration(self, file: str, *overrides: str) -> Any:
        hydra, omegaconf = import_module("hydra"), import_module("omegaconf")
        shared = ["model=phi-1_5", "task_name=benchmark", "forget_split=forget01", "holdout_split=holdout01"]
        with hydra.initialize_config_dir(str((self.path / "configs").resolve()), version_base=None):
            config = hydra.compose(file, overrides=[*shared, *overrides])
        config.model.template_args.asst_start_tag = "Answer:"
        config.model.tokenizer_args.pretrained_model_name_or_path = str(self.model)
        config.model.model_args = {"pretrained_model_name_or_path": str(self.model), "torch_dtype": "float32"}
        omegaconf.OmegaConf.update(config, "paths.output_dir", str(self.scratch / "out"))
        return config

    def load(self, config: Any) -> tuple[Any, Any]:
        return import_module("model").get_model(config.model)

    def step_cpu_ms(self, method: str, steps: int) -> float:
        """Median CPU milliseconds from the end of one step to the end of the next, in its own training loop."""
        config = self.configuration(
            "unlearn.yaml", "experiment=unlearn/tofu/default", "retain_split=retain99", f"trainer={method}"
        )
        model, tokenizer = self.load(config)
        template = config.model.template_args
        sets = self.data.get_data(config.data, mode="unlearn", tokenizer=tokenizer, template_args=template)
        collator = self.data.get_collators(config.collator, tokenizer=tokenizer)
        settings = transformers.TrainingArguments(
            output_dir=str(self.scratch / "out"),
            per_device_train_batch_size=BATCH,
            learning_rate=config.trainer.args.learning_rate,
            weight_decay=config.trainer.args.weight_decay,
            optim="adamw_torch",
            max_steps=steps + WARM_UP,
            seed=0,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        ends: list[float] = []
        trainer = without_item_count(self.trainer.TRAINER_REGISTRY[method])(
            model=model,
            train_dataset=sets["train"],
            data_collator=collator,
            args=settings,
            template_args=template,
            callbacks=[step_ends(ends)],
            **config.trainer.method_args,
        )
        trainer.train()
        ends = ends[WARM_UP - 1 :]
        return 1000 * middle([after - before for before, after in pairwise(ends)])

    def evaluation(self) -> tuple[float, dict[str, float]]:
        """CPU seconds of its TOFU evaluation with METRICS, reading the model not included, and its results."""
        config = self.configuration(
            "eval.yaml",
            "experiment=eval/tofu/default",
            f"eval/tofu_metrics@eval.tofu.tofu_metrics=[{','.join(METRICS)}]",
            f"eval.tofu.batch_size={BATCH}",
        )
        model, tokenizer = self.load(config)
        evaluator = self.evals.get_evaluators(config.eval)["tofu"]
        start = process_time()
        values = evaluator.evaluate(
            model=model, tokenizer=tokenizer, template_args=config.model.template_args, overwrite=True
        )
        took = process_time() - start
        missing = len(METRICS) - len(values)
        if missing or not all(math.isfinite(value) for value in values.values()):
            sys.exit(f"The framework gave {values}: {missing} of {len(METRICS)} metrics are missing or not finite.")
        return took, {name: float(value) for name, value in values.items()}


def prepare_imports(peer: Path) -> None:
    """Put the framework on the path, and empty modules where it imports packages that are not needed here."""
    if not (peer / "src" / "trainer").is_dir():
        sys.exit(f"{peer} is no checkout of OpenUnlearning: it has no src/trainer. Give its root folder to --peer.")
    absent = [name for name in ("datasets", "hydra", "omegaconf", "sklearn") if importlib.util.find_spec(name) is None]
    if absent:
        sys.exit(f"{sys.executable} lacks {', '.join(absent)}, which OpenUnlearning needs. Run it with another Python.")
    sys.path.insert(0, str(peer / "src"))
    needed = {"deepspeed": [], "lm_eval": ["simple_evaluate"], "lm_eval.models": [], "lm_eval.models.hf_vlms": ["HFLM"]}
    for name, members in {**needed, "lm_eval.tasks": ["TaskManager"]}.items():
        try:
            __import__(name)
        except ImportError:
            module = types.ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)  # others ask whether the package is there
            for member in members:
                setattr(module, member, None)
            sys.modules[name] = module


def without_item_count(trainer: type) -> type:
    """Its trainers' compute_loss predates the argument `num_items_in_batch` of newer transformers: leave it out."""

    class Adapted(trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return super().compute_loss(model, inputs, return_outputs)

    return Adapted


def step_ends(ends: list[float]) -> transformers.TrainerCallback:
    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(process_time())

    return Clock()


def with_space(record: dict[str, Any]) -> dict[str, Any]:
    def spaced(value: Any) -> Any:
        return [f" {item}" for item in value] if isinstance(value, list) else f" {value}"

    return {key: spaced(value) if key.endswith("answer") else value for key, value in record.items()}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="checkout of OpenUnlearning")
    parser.add_argument("--data", type=Path, help="folder of TOFU's files (default: invented rows)")
    parser.add_argument("--model", type=Path, help="model folder made by another benchmark (with --rows)")
    parser.add_argument("--rows", type=Path, help="data folder made by another benchmark (with --model)")
    parser.add_argument("--do", nargs="+", choices=("step", "evaluate"), default=["step", "evaluate"])
    parser.add_argument("--steps", type=int, default=12, help="steps measured per method")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.rows is None):
        parser.error("--model and --rows go together")
    return arguments


if __name__ == "__main__":
    main()
