"""`expunge demo`: fictional people are learned and one in ten forgotten, by several methods, on one CPU within minutes."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from expunge import config, patch
from expunge.data import Encoder
from expunge.data.benchmarks.fictional import FictionalPeople, build_tokenizer, demo_config, once, plain_texts
from expunge.errors import ConfigurationError, ExpungeError
from expunge.evaluation import Evaluation, evaluate
from expunge.evaluation.suites import Suite, request_suite
from expunge.files import atomic_path, write_json
from expunge.methods import METHODS as METHOD_TABLE
from expunge.methods import Context, TaskVector, method
from expunge.models import Loaded, load
from expunge.models.saving import save_model
from expunge.reporting import write_report
from expunge.request import Example, Request
from expunge.runs.finetune import Finetuning
from expunge.runs.output import writes
from expunge.runs.record import Clock, Listener, result, results_of, run_record
from expunge.training import Linear

PRETRAINING = Finetuning(lr=3e-3, epochs=6, batch_size=32, rate=Linear(warmup=0.1), checkpoint_every=0)
FINETUNING = Finetuning(lr=2e-3, epochs=12, batch_size=32, rate=Linear(warmup=0.1), checkpoint_every=0)
MAX_NEW_TOKENS = 32  # the longest answer has 28
MEMORISED = 0.9  # extraction strength on forget that the original must reach and the retrained must not

# The best of five settings each on seeds 100 and 101 (the last three: 100), which are not reported: studies/demo/tune.py.
# "npo+wagle" is NPO under WAGLE's mask.
METHODS: dict[str, dict[str, Any]] = {
    "gradascent": {"steps": 30, "lr": 1e-4},
    "graddiff": {"steps": 50, "lr": 1e-4},
    "npo": {"steps": 50, "lr": 2e-4, "gamma": 0.1},
    "ngdiff": {"steps": 50, "lr": 2e-4, "optimizer": "adamw"},
    "npo+wagle": {"steps": 50, "lr": 3e-4, "gamma": 0.1, "mask": {"ratio": 0.5}},
    "taskvector": {"epochs": 24, "lr": 1e-3, "batch_size": 32},
    "perta": {"epochs": 12, "lr": 2e-3, "batch_size": 32, "p": 2, "fisher": "per_example"},
}


@dataclass(frozen=True)
class World:
    """One seed's data, its models and how each was measured."""

    seed: int
    data: FictionalPeople
    original: Loaded
    retrained: Loaded
    suite: Suite
    evaluations: Mapping[str, Evaluation]

    @property
    def request(self) -> Request:
        """Forget the chosen people; keep the others and general knowledge."""
        return Request(self.data.forget, (*self.data.retain, *self.data.general), self.data.holdout)


@writes(folder=True)
def demo(
    out: Path | str = "demo",
    *,
    seeds: Sequence[int] = (0,),
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run the demo for every seed and write models, patches, results.json and report.html to the folder `out`.

    A tokenizer and a base model are trained on other fictional people; the base is fine-tuned on all people ("original")
    and on all but those to forget ("retrained", the gold standard); each method of `methods` (names to settings; default:
    the demo's own) unlearns from the original. Returns the content of results.json.

    Raises ExpungeError (exit code 1) if the original has not memorised the forget set or the retrained model knows it: no
    comparison would mean anything then.
    """
    out, listener, clock = Path(out), listener or Listener(), Clock()
    if not seeds:
        raise ConfigurationError("The demo needs at least one seed.")
    chosen = {name: dict(settings) for name, settings in (METHODS if methods is None else methods).items()}
    runs: list[dict[str, Any]] = []
    with atomic_path(out, overwrite=overwrite) as folder:
        folder.mkdir()
        for seed in seeds:
            place = folder if len(seeds) == 1 else folder / f"seed{seed}"
            world = prepare(place, seed, listener, clock)
            controls = world.evaluations
            runs += [result(role, role, found, controls=controls) | {"seed": seed} for role, found in controls.items()]
            for name, settings in chosen.items():
                loaded, run = unlearned(world, name, settings, listener, clock)
                runs.append(run)
                _keep_patch(loaded, name, run["settings"], place)
        results = results_of("Forgetting fictional people", "demo", runs)
        write_json(folder / "results.json", results)
        write_report(results, folder / "report.html")
        configuration = {
            "seeds": list(seeds),
            "pretraining": config.to_dict(PRETRAINING),
            "finetuning": config.to_dict(FINETUNING),
            "methods": chosen,
        }
        write_json(folder / "run.json", run_record("demo", configuration, clock=clock))
    return results


def prepare(folder: Path, seed: int, listener: Listener, clock: Clock) -> World:
    """Make the data and train the base, the original and the retrained model of one seed. Raises as `demo` says.

    Models that lie in `folder` already are read instead of trained.
    """
    data = FictionalPeople.make(seed)
    data.write(folder / "data")
    learned = {"base": data.pretrain, "retrained": (*data.retain, *data.general)}
    learned["original"] = (*data.forget, *learned["retrained"])
    suite = request_suite(
        Request(once(data.forget), once(data.retain), once(data.holdout)),
        utility={"general": data.general},
        with_options=("general",),
        max_new_tokens=MAX_NEW_TOKENS,
    )
    models: dict[str, Loaded] = {}
    evaluations: dict[str, Evaluation] = {}
    for role, examples in learned.items():
        place = folder / role
        if place.is_dir():
            models[role] = load(place, device="cpu")
        else:
            doing = "pre-training" if role == "base" else "fine-tuning"
            listener.stage(f"seed {seed}: {doing} the {role} model on {len(examples)} questions")
            start = models.get("base") or _untrained(place, data, seed)
            models[role] = Loaded(copy.deepcopy(start.model), start.tokenizer, place)
            _train(models[role], PRETRAINING if role == "base" else FINETUNING, examples, seed, listener)
            _save(models[role])
        clock.lap("pretrain" if role == "base" else "finetune")
        if role != "base":
            gold = evaluations.get("retrained")
            evaluations[role] = evaluate(models[role], suite, reference=gold, progress=listener.batch)
            clock.lap("evaluate")
    _check(evaluations)
    order = {role: evaluations[role] for role in ("original", "retrained")}
    return World(seed, data, models["original"], models["retrained"], suite, order)


def unlearned(
    world: World, name: str, settings: Mapping[str, Any], listener: Listener, clock: Clock
) -> tuple[Loaded, dict[str, Any]]:
    """Unlearn with one method from the original model; returns the model and its entry of results.json."""
    kind, _, mask = name.partition("+")
    own: dict[str, Any] = {"seed": world.seed, **settings}
    if mask:
        own["mask"] = {"name": mask, **own.get("mask", {})}
    if issubclass(METHOD_TABLE[kind], TaskVector):
        own.setdefault("base", str(world.original.folder.parent / "base"))
    chosen = method(kind, own)
    loaded = Loaded(copy.deepcopy(world.original.model), world.original.tokenizer, world.original.folder)
    listener.stage(f"seed {world.seed}: unlearning with {name}")
    clock.lap("other")
    history = chosen(loaded, world.request, Context(Encoder(loaded.tokenizer), progress=listener.step))
    seconds = clock.lap("unlearn")
    evaluation = evaluate(loaded, world.suite, reference=world.evaluations["retrained"], progress=listener.batch)
    clock.lap("evaluate")
    told: dict[str, Any] = {"history": history, "settings": config.to_dict(chosen), "seconds": seconds}
    return loaded, result(name, "unlearned", evaluation, controls=world.evaluations, **told)


def _keep_patch(loaded: Loaded, name: str, settings: Mapping[str, Any], folder: Path) -> None:
    """Write the patch from the original to the unlearned model; the two make the model again."""
    model = folder / f".{name}"
    save_model(loaded, model)
    patch.create(loaded.folder, model, folder / "patches" / f"{name}.safetensors", method=name, settings=settings)
    shutil.rmtree(model)


def _untrained(folder: Path, data: FictionalPeople, seed: int) -> Loaded:
    """A tokenizer trained on what the base model will read, and a model with random weights."""
    tokenizer = build_tokenizer(plain_texts(data.pretrain))
    torch.manual_seed(seed)
    model = LlamaForCausalLM(demo_config(len(tokenizer)))
    return Loaded(model.eval(), tokenizer, folder)


def _train(loaded: Loaded, finetuning: Finetuning, examples: Sequence[Example], seed: int, listener: Listener) -> None:
    seeded = config.build(Finetuning, {**config.to_dict(finetuning), "seed": seed})
    seeded(loaded, examples, Encoder(loaded.tokenizer), progress=listener.step)


def _save(loaded: Loaded) -> None:
    loaded.model.save_pretrained(loaded.folder)  # type: ignore[operator]
    loaded.tokenizer.save_pretrained(loaded.folder)


def _check(evaluations: Mapping[str, Evaluation]) -> None:
    known = {role: found.metrics["forget.extraction_strength"] for role, found in evaluations.items()}
    if known["original"] < MEMORISED or known["retrained"] >= MEMORISED:
        raise ExpungeError(
            f"The demo's premise failed: extraction strength on the forget set is {known['original']:.3f} for the original "
            f"model (it must have memorised: at least {MEMORISED}) and {known['retrained']:.3f} for the retrained one (it "
            f"must not: below {MEMORISED}). Try another --seed."
        )
