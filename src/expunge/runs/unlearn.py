"""`expunge unlearn`: request → method → patch → patched model → evaluation → report, in one folder."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from expunge import config, methods, patch
from expunge.data import Wording
from expunge.errors import ConfigurationError
from expunge.evaluation import Evaluation, evaluate, tuned
from expunge.evaluation.suites import Suite, request_suite
from expunge.files import atomic_path, write_json
from expunge.methods import Context, Method, name_of
from expunge.methods import method as make_method
from expunge.models import Loaded, load, new_adapter
from expunge.models.fingerprint import check_unchanged, fingerprint
from expunge.models.saving import save_model
from expunge.reporting import write_report
from expunge.request import Columns, Paths, Request
from expunge.runs import inputs
from expunge.runs.checks import changes_adapter, check_models
from expunge.runs.outcome import check_outcome
from expunge.runs.output import full_models, writes
from expunge.runs.record import (
    Clock,
    Listener,
    checkpoint_of,
    hashes,
    read_evaluation,
    result,
    results_of,
    run_record,
    warn_early,
)
from expunge.runs.texts import in_chunks
from expunge.training import History

Output = Literal["model", "patch", "both"]


@writes("model", "forget", "retain", "holdout", "reference", "tuned_on", folder=True, copies=full_models)
def unlearn(
    model: Path | str,
    forget: Paths,
    retain: Paths | None = None,
    holdout: Paths | None = None,
    *,
    columns: Columns | None = None,
    retain_includes_forget: bool = False,
    out: Path | str,
    method: str | Method = "ngdiff",
    settings: Mapping[str, Any] | None = None,
    output: Output = "both",
    lora: int | None = None,
    lora_targets: Sequence[str] = (),
    reference: Path | str | None = None,
    suite: Suite | None = None,
    evaluate_models: bool = True,
    tuned_on: Paths | None = None,
    leave_out_tuned: bool = True,
    max_length: int = 512,
    chunk_tokens: int | None = None,
    wording: Wording = Wording(),
    max_new_tokens: int = 64,
    limit: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Make `model` forget, and measure what it still knows. Returns the content of `results.json`.

    forget, retain, holdout: one or several files or folders each; columns and retain_includes_forget: how to read them
    (see `Request.read`). Running text of more than `chunk_tokens` tokens (default: `max_length`) is cut into chunks of
    that length. method: a name with `settings` over
    its defaults, or a Method. output: write the unlearned "model", the "patch" that makes it from the original, or
    "both". lora: train a new adapter of that rank instead of the weights; a model folder that is an adapter is trained
    as it is. reference: the model retrained without the forget set, the gold standard to compare with, or the
    results.json of its evaluation. suite: what to evaluate on, by default the request itself. limit: at most that many
    examples of each of its sets. tuned_on: examples on which settings were chosen (JSONL, or the results.json or run.json
    of the run that chose); they and those the method itself would choose settings on are unlearned like all others, but
    nothing is reported on them unless `leave_out_tuned` is false.

    `out` becomes a folder with model/, patch.safetensors, log.jsonl, run.json, results.json and report.html, all at
    once; until then checkpoints lie in `<out>.checkpoint`, where `resume` finds them. Raises what reading, loading and
    the method raise; nothing half-written stays.
    """
    out, listener, clock = Path(out), listener or Listener(), Clock()
    cutting: dict[str, Any] = {"max_length": max_length, "chunk_tokens": chunk_tokens}
    chosen = make_method(method, settings) if isinstance(method, str) else method
    request = Request.read(forget, retain, holdout, columns=columns, retain_includes_forget=retain_includes_forget)
    data = {**request.sources, **inputs.read(train=getattr(chosen, "train", None))}
    request = in_chunks(request, model, **cutting, wording=wording, trust_remote_code=trust_remote_code)
    suite = suite or request_suite(request, limit=limit, max_new_tokens=max_new_tokens)
    suite, marks = _apart(suite, chosen, request, tuned_on, leave_out=leave_out_tuned)
    options: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "wording": wording,
    }
    board = _Board(suite, max_length, listener, wanted=evaluate_models)
    check_models(model=model, reference=reference)
    methods.check(chosen, request, adapter=changes_adapter(model, lora))
    listener.stage("loading")
    board.add_reference(reference, options)
    loaded = load(model, **options, note=listener.note)
    _check_output(loaded, output)
    asked = {**cutting, "wording": wording.record(), "dtype": dtype, "lora": lora, "lora_targets": sorted(lora_targets)}
    asked |= {"columns": dict(columns)} if columns else {}
    asked |= {"retain_includes_forget": True} if retain_includes_forget else {}
    identity = inputs.identity(chosen, loaded.fingerprint, data, **asked)
    clock.lap("load")
    board.add("original", loaded)
    if lora is not None:
        loaded = new_adapter(loaded, lora, targets=tuple(lora_targets), seed=chosen.seed, note=listener.note)
    clock.lap("evaluate")

    checkpoint = checkpoint_of(out, resume=resume)
    context = Context(loaded.encoder(max_length), checkpoint, resume, listener.step, chunk_tokens, identity)
    if note := context.encoder.note(request.forget):
        listener.note(note)
    history = _forget(chosen, loaded, request, context, listener)
    seconds = clock.lap("unlearn")
    board.add("unlearned", loaded)
    clock.lap("evaluate")
    results = _results(chosen, history, board.evaluations, suite, request, seconds, loaded.folder)
    record: dict[str, Any] = {"tuned_on": sorted(marks)} if marks else {}
    results |= record
    listener.stage(f"writing {out}")
    configuration = {
        "method": config.to_dict(chosen),
        "lora": lora,
        **cutting,
        "wording": wording.record(),
        "output": output,
    }
    check_unchanged(loaded)
    with atomic_path(out, overwrite=overwrite) as folder:
        written = _write_weights(loaded, chosen, history, folder, output)
        weights = {"original": loaded.fingerprint, "retrained": board.gold, "unlearned": written}
        results["hashes"] = hashes(weights, board.evaluations)
        results["hashes"]["request"] = {name: inputs.together(files) for name, files in data.items()}
        clock.lap("write")
        _write_records(folder, history, results)
        record |= run_record("unlearn", configuration, clock=clock, data=data, model=loaded)
        record["identity"] = dict(identity.facts)
        record["outcome"] = {"stopped": history.stopped, "notes": history.notes, **history.found}
        write_json(folder / "run.json", record)
    checkpoint_of(out, resume=False)  # the run is whole: its checkpoints are not needed any more
    return results


def _apart(
    suite: Suite, chosen: Method, request: Request, tuned_on: Paths | None, *, leave_out: bool
) -> tuple[Suite, frozenset[str]]:
    """The suite without what settings were, or will be, chosen on; and the marks of these examples.

    Where the method's own search would leave too few to report on, all are, with a note.
    """
    given = tuned.read_marks(tuned_on) if tuned_on is not None else frozenset()
    own = frozenset(example.mark for example in methods.tuned_on(chosen, request))
    if not leave_out:
        return tuned.included(suite, given | own), given | own
    return tuned.as_far_as_possible(tuned.apart(suite, given, leave_out=True), own), given | own


def _forget(chosen: Method, loaded: Loaded, request: Request, context: Context, listener: Listener) -> History:
    for warning in request.warnings:
        listener.note(warning)
    listener.stage(f"unlearning with {name_of(chosen)}")
    history = chosen(loaded, request, context)
    check_outcome(loaded, (request.forget, request.retain), context.encoder, name_of(chosen))
    for note in (*history.notes, f"stopped: {history.stopped}"):
        listener.note(note)
    return history


@dataclass
class _Board:
    """The evaluations of a run, each against the retrained model's where there is one; none if they are not `wanted`."""

    suite: Suite
    max_length: int
    listener: Listener
    wanted: bool
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    gold: str | None = None  # the retrained model's fingerprint

    def add(self, role: str, loaded: Loaded) -> None:
        if self.wanted:
            self.listener.stage(f"evaluating the {role} model")
            settings = {"max_length": self.max_length, "progress": self.listener.batch}
            gold = self.evaluations.get("retrained")
            self.evaluations[role] = evaluate(loaded, self.suite, reference=gold, **settings)
            if role == "original":
                warn_early(self.listener, self.evaluations)

    def add_reference(self, reference: Path | str | None, options: Mapping[str, Any]) -> None:
        """The retrained model's, if one is given: read from its results.json, or measured."""
        if reference is None or not self.wanted:
            return
        known = read_evaluation(reference)
        if known is None:
            loaded = load(reference, **options)
            self.gold = loaded.fingerprint
            self.add("retrained", loaded)
        else:
            self.evaluations["retrained"] = known


def _check_output(loaded: Loaded, output: Output) -> None:
    if output != "model" and not loaded.folder.is_dir():
        raise ConfigurationError(
            f"A patch is bound to the files of its base model, and {loaded.folder} is not a local folder. "
            "Save the model to a folder first, or give --output model."
        )


def _results(
    chosen: Method,
    history: History,
    evaluations: Mapping[str, Evaluation],
    suite: Suite,
    request: Request,
    seconds: float,
    model: Path,
) -> dict[str, Any]:
    name = name_of(chosen)
    runs = []
    for role in ("original", "retrained", "unlearned"):
        if role not in evaluations:
            continue
        if role == "unlearned":
            settings = config.to_dict(chosen)
            done: dict[str, Any] = {"history": history, "settings": settings, "seconds": seconds}
            run = result(name, role, evaluations[role], controls=evaluations, **done)
        else:
            run = result(role, role, evaluations[role], controls=evaluations)
        runs.append(run)
    counts = {part: len(getattr(request, part)) for part in ("forget", "retain", "holdout")}
    models = {"original": str(model)}
    warnings = list(request.warnings)
    return results_of(f"Unlearning with {name}", suite.name, runs, models=models, request=counts, warnings=warnings)


def _write_weights(loaded: Loaded, chosen: Method, history: History, folder: Path, output: Output) -> str:
    """Write the model, the patch or both; returns the fingerprint of the model's weights."""
    folder.mkdir()
    save_model(loaded, folder / "model")
    if output != "model":
        patch.create(
            loaded.folder,
            folder / "model",
            folder / "patch.safetensors",
            method=name_of(chosen),
            settings=config.to_dict(chosen),
            info={"stopped": history.stopped, "chosen": history.chosen},
        )
    written = fingerprint(folder / "model")
    if output == "patch":
        shutil.rmtree(folder / "model")
    return written


def _write_records(folder: Path, history: History, results: dict[str, Any]) -> None:
    lines = (json.dumps(entry) + "\n" for entry in history.log)
    (folder / "log.jsonl").write_text("".join(lines), encoding="utf-8")
    if results["runs"]:
        write_json(folder / "results.json", results)
        write_report(results, folder / "report.html")
