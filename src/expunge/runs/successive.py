"""`expunge successive`: one request after another (sustainability), or ever larger ones (scalability); MUSE's C5 and C6."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from expunge import config
from expunge.data import Wording
from expunge.errors import ConfigurationError
from expunge.evaluation import Evaluation, evaluate, tuned
from expunge.evaluation.suites import Suite, request_suite
from expunge.files import atomic_path, mark, write_json, write_text
from expunge.identity import digest
from expunge.methods import Method, name_of, tuned_on
from expunge.methods import method as make_method
from expunge.models import load
from expunge.models.fingerprint import fingerprint
from expunge.models.folders import resolve
from expunge.outputs import discard
from expunge.reading import foreign, part, read_object, read_text
from expunge.reporting import write_report
from expunge.request import Columns, Example, Paths, Request, paths_of, read_examples, read_rows
from expunge.runs import inputs
from expunge.runs.output import Output, writes
from expunge.runs.record import (
    Clock,
    Listener,
    checkpoint_of,
    read_evaluation,
    result,
    results_of,
    run_record,
    warn_early,
)
from expunge.runs.series import RequestPoint, curve_point, each_request
from expunge.runs.texts import in_chunks
from expunge.runs.unlearn import unlearn
from expunge.training import checkpoint

Kind = Literal["sustainability", "scalability"]
SPLIT = re.compile(r" \((chunk|turn) \d+\)")  # what a part of an example adds to where it is from


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What every step shares."""

    model: Path
    parts: Path
    requests: tuple[tuple[Example, ...], ...]
    retain: Paths | None
    holdout: Paths | None
    chosen: Method
    kind: Kind
    suite: Suite | None
    reference: Path | str | None
    limit: int | None
    kept: inputs.Inputs  # the retain and holdout files as they were when the run began
    sizes: Mapping[str, Any]  # max_length, chunk_tokens
    max_new_tokens: int
    finished: int = 0  # steps of an earlier run that this one adds to
    options: Mapping[str, Any] = field(default_factory=dict)  # dtype, device, trust_remote_code

    def so_far(self, step: int) -> tuple[Example, ...]:
        """What must be forgotten after `step` requests, each example once."""
        first: dict[tuple[str, ...], Example] = {}
        for example in (example for rows in self.requests[:step] for example in rows):
            first.setdefault(example.key, example)
        return tuple(first.values())

    def asked(self, step: int) -> tuple[Example, ...]:
        """What step `step` is to unlearn."""
        return self.so_far(step) if self.kind == "scalability" else self.requests[step - 1]

    def request(self, forget: Sequence[Example]) -> Request:
        """With retain and holdout, and long texts in chunks."""
        retain, holdout = (read_examples(path) if path else () for path in (self.retain, self.holdout))
        reading = {name: self.options[name] for name in ("wording", "trust_remote_code")}
        return in_chunks(Request(tuple(forget), retain, holdout), self.model, **self.sizes, **reading)

    @cached_property
    def marks(self) -> frozenset[str]:
        """The examples that the method chooses settings on, at any step."""
        steps = range(1, len(self.requests) + 1)
        found = (tuned_on(self.chosen, self.request(self.asked(step))) for step in steps)
        return frozenset(example.mark for examples in found for example in examples)

    def measured_on(self, step: int) -> Suite:
        """The given suite, or: everything asked for so far, each request by itself, and what must stay."""
        if self.suite is not None:
            return tuned.as_far_as_possible(self.suite, self.marks)
        request = self.request(self.so_far(step))
        suite = request_suite(request, limit=self.limit, max_new_tokens=self.max_new_tokens)
        suite = tuned.as_far_as_possible(suite, self.marks)
        own = [{example.where for example in rows} for rows in self.requests[:step]]
        each = {
            f"request_{number}": tuple(e for e in suite.sets["forget"] if SPLIT.sub("", e.where) in places)
            for number, places in enumerate(own, start=1)
        }
        sets = {**suite.sets, **{name: rows for name, rows in each.items() if rows}}
        return replace(suite, sets=sets, silent=(*suite.silent, *each))


def _is_series(out: Path) -> bool:
    """Whether `out` is a finished run of `successive`."""
    record = out / "run.json"
    return record.is_file() and read_object(record, ConfigurationError).get("command") == "successive"


def _where(asked: Mapping[str, Any]) -> Output:
    out = Path(asked["out"])
    return Output(out, continues=bool(asked["resume"]) and _is_series(out))


@writes(
    "model", "forget", "retain", "holdout", "reference", folder=True, where=_where,
    copies=lambda asked: len(asked["forget"]),
)  # fmt: skip
def successive(
    model: Path | str,
    forget: Sequence[Paths],
    retain: Paths | None = None,
    holdout: Paths | None = None,
    *,
    columns: Columns | None = None,
    retain_includes_forget: bool = False,
    out: Path | str,
    kind: Kind = "sustainability",
    method: str | Method = "ngdiff",
    settings: Mapping[str, Any] | None = None,
    reference: Path | str | None = None,
    suite: Suite | None = None,
    limit: int | None = None,
    max_length: int = 512,
    chunk_tokens: int | None = None,
    wording: Wording = Wording(),
    max_new_tokens: int = 64,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Unlearn several requests, measuring after each. Returns the content of `results.json`.

    kind "sustainability": step k starts from step k − 1's model and is asked to forget the k-th file alone.
    "scalability": every step starts from `model` and is asked to forget the files 1 … k together (each may hold those
    before it, as MUSE's do, or only what is new). After step k the model is measured on everything asked for so far
    (`forget`), on each request by itself (`request_1`, ...), and on retain and holdout; or on `suite`, the same at every
    step. reference: the model retrained without all of it (or the results.json of its evaluation on what the last step is
    measured on); it is compared with the last step, and with every step where `suite` is given. columns,
    retain_includes_forget: as in `Request.read`, for all requests together. The other parameters are those of `unlearn`.

    `out` becomes a folder with a run folder for each step (1/, 2/, ...), results.json, which has the curve under
    `successive`, report.html and run.json, all at once; until then the finished steps lie in `<out>.parts`, where `resume`
    finds them. A finished `out` grows with `resume`: name its requests in the same order, then further ones; its steps
    are kept, whatever retain set the new ones come with, and every request is measured again. `successive.requests` of
    the results has each request's extraction strength and probability after each step, beside the first original's.
    Raises ConfigurationError for fewer than two files, or if the steps to resume were made otherwise.
    """
    out, listener, clock = Path(out), listener or Listener(), Clock()
    if len(forget) < 2:
        raise ConfigurationError("Successive requests: give --forget at least twice, one file a request.")
    parts = out.with_name(out.name + ".parts")
    finished = _finished(out, len(forget)) if resume and _is_series(out) else 0
    if not resume:
        discard(parts)
    parts.mkdir(exist_ok=True)
    mark(parts, everything=True)
    for step in range(1, finished + 1):
        if not (parts / str(step)).is_dir():
            shutil.copytree(out / str(step), parts / str(step), copy_function=_linked)
    read = [read_rows(paths, columns) for paths in forget]
    data = {f"forget {number}": rows.sources for number, rows in enumerate(read, start=1)}
    if columns or retain_includes_forget:
        whole = [path for paths in forget for path in paths_of(paths)]
        request = Request.read(
            list(dict.fromkeys(whole)), retain, holdout, columns=columns, retain_includes_forget=retain_includes_forget
        )
        for warning in request.warnings:
            listener.note(warning)
        retain, holdout = (
            _rewritten(parts / f"{name}.jsonl", getattr(request, name)) for name in ("retain", "holdout")
        )
    plan = _Plan(
        model=resolve(model),
        parts=parts,
        requests=tuple(rows.examples for rows in read),
        retain=retain,
        holdout=holdout,
        chosen=make_method(method, settings) if isinstance(method, str) else method,
        kind=kind,
        suite=suite,
        reference=reference,
        limit=limit,
        kept=inputs.read(retain=retain, holdout=holdout),
        finished=finished,
        sizes={"max_length": max_length, "chunk_tokens": chunk_tokens},
        max_new_tokens=max_new_tokens,
        options={"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code, "wording": wording},
    )
    runs, points = _controls(plan, listener)
    requests: list[dict[str, Any]] = []
    for step in range(1, len(forget) + 1):
        run, point, each = _step(plan, step, runs, resume=resume, listener=listener)
        runs.append(run)
        points.append(point)
        requests += [asdict(point) for point in each]
    clock.lap("all steps")
    name = name_of(plan.chosen)
    title = {"sustainability": "One request after another", "scalability": "Ever larger requests"}[kind]
    more: dict[str, Any] = {"successive": {"kind": kind, "points": points, "requests": requests}}
    more |= {"tuned_on": sorted(plan.marks)} if plan.marks else {}
    results = results_of(f"{title}: {name}", plan.measured_on(1).name, runs, **more)
    record = run_record(
        "successive",
        {"method": config.to_dict(plan.chosen), "kind": kind, **plan.sizes, "wording": wording.record()},
        clock=clock,
        data={**data, **plan.kept},
    )
    listener.stage(f"writing {out}")
    with atomic_path(out, overwrite=overwrite or finished > 0) as folder:
        folder.mkdir()
        for step in range(1, len(forget) + 1):
            shutil.copytree(parts / str(step), folder / str(step), copy_function=_linked)
        write_json(folder / "results.json", results)
        write_report(results, folder / "report.html")
        write_json(folder / "run.json", record)
    shutil.rmtree(parts)
    return results


def _controls(plan: _Plan, listener: Listener) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The runs of the original and, where given, the retrained model on what the last step is measured on; and the
    curve's first point."""
    suite = plan.measured_on(len(plan.requests))
    found: dict[str, Evaluation] = {}
    if plan.reference is not None:
        known = read_evaluation(plan.reference)
        found["retrained"] = known or _measured(plan, "retrained", Path(plan.reference), suite, None, listener)
    found["original"] = _measured(plan, "original", plan.model, suite, found.get("retrained"), listener)
    warn_early(listener, found)
    runs = [result(role, role, found[role], controls=found) for role in ("original", "retrained") if role in found]
    return runs, [curve_point(0, 0, "before", found["original"], None)]


def _step(
    plan: _Plan, step: int, before: Sequence[dict[str, Any]], *, resume: bool, listener: Listener
) -> tuple[dict[str, Any], dict[str, Any], list[RequestPoint]]:
    """Unlearn the step's request, or take it from an earlier run; measure the model it gives, on each request too."""
    target, total = plan.parts / str(step), len(plan.requests)
    start = plan.model
    if plan.kind == "sustainability" and step > 1:
        start = resolve(plan.parts / str(step - 1))
    examples = plan.asked(step)
    asked = plan.parts / f"{step}.jsonl"
    _rewritten(asked, examples)
    listener.stage(f"request {step} of {total}: {len(examples)} examples")
    if target.is_dir():
        _check_same(plan, target, start, asked)
    else:
        begun = resume and checkpoint.exists(checkpoint_of(target, resume=True))
        unlearn(
            start, asked, plan.retain, plan.holdout, out=target, method=plan.chosen, output="model",
            evaluate_models=False, resume=begun, listener=listener, **plan.sizes, **plan.options,
        )  # fmt: skip
        _check_same(plan, target, start, asked)  # no file was replaced since the first step
        (plan.parts / f"{step}.json").unlink(missing_ok=True)  # of another model
    role, suite = f"{step}", plan.measured_on(step)
    controls = _comparable(plan, step, suite, before, listener)
    evaluation = _measured(plan, role, target, suite, controls.get("retrained"), listener)
    seconds = _record(target, "seconds").get("unlearn", 0.0)
    settings = {**config.to_dict(plan.chosen), "requests": step}
    run = result(name_of(plan.chosen), "unlearned", evaluation, controls=controls, settings=settings, seconds=seconds)
    label = f"{step} request{'s' if step > 1 else ''}"
    point = curve_point(step, len(plan.so_far(step)), label, evaluation, seconds)
    return run, point, each_request(step, evaluation, controls["original"])


def _rewritten(path: Path, examples: Sequence[Example]) -> Path | None:
    """`path`, which holds the examples as JSONL; None for no examples."""
    lines = "".join(json.dumps(example.record(), ensure_ascii=False) + "\n" for example in examples)
    if lines and (not path.is_file() or read_text(path, ConfigurationError) != lines):
        write_text(path, lines)
    return path if lines else None


def _finished(out: Path, requests: int) -> int:
    """How many steps the finished run `out` has. Raises ConfigurationError if there are no requests besides theirs."""
    finished = sum(1 for item in out.iterdir() if item.is_dir() and item.name.isdigit())
    if requests <= finished:
        raise ConfigurationError(
            f"{out} is finished and holds {finished} requests. To add one, give those in the same order, each with "
            f"--forget, and then the new one: {finished + 1} in all; {requests} are given."
        )
    return finished


def _comparable(
    plan: _Plan, step: int, suite: Suite, before: Sequence[dict[str, Any]], listener: Listener
) -> dict[str, Evaluation]:
    """The evaluations of the controls that were asked the same as this step's model: always the first original's."""
    if plan.suite is None and step < len(plan.requests):
        return {"original": _measured(plan, f"original_{step}", plan.model, suite, None, listener)}
    return {run["model"]: Evaluation.from_dict(run) for run in before if run["model"] != "unlearned"}


def _measured(
    plan: _Plan, role: str, model: Path, suite: Suite, reference: Evaluation | None, listener: Listener
) -> Evaluation:
    """The model's evaluation, kept in `<out>.parts` with the fingerprint of its weights and what it was asked."""
    place, known = plan.parts / f"{role}.json", None
    folder = resolve(model)
    made = {
        "model": fingerprint(folder) if folder.is_dir() else str(folder),
        "asked": digest([repr(suite).encode()]),
        "reference": json.loads(json.dumps(reference.to_dict())) if reference is not None else None,
        "dtype": plan.options["dtype"],
        "wording": plan.options["wording"].record(),
        **plan.sizes,
    }
    if place.is_file():
        known = read_object(place, ConfigurationError)
    if known is not None and known.get("made") == made and known.get("sha256") == _sealed(known.get("evaluation")):
        with foreign(place, ConfigurationError, what="is damaged"):
            return Evaluation.from_dict(known["evaluation"])
    listener.stage(f"evaluating {f'the {role} model' if not role.isdigit() else f'after request {role}'}")
    found = evaluate(
        load(folder, **plan.options), suite, max_length=plan.sizes["max_length"], reference=reference,
        progress=listener.batch,
    )  # fmt: skip
    evaluation = json.loads(json.dumps(found.to_dict()), parse_constant=lambda _: None)
    write_json(place, {"made": made, "evaluation": evaluation, "sha256": _sealed(evaluation)})
    return found


def _sealed(evaluation: Any) -> str:
    return digest([json.dumps(evaluation, sort_keys=True).encode()])


def _check_same(plan: _Plan, target: Path, start: Path, asked: Path) -> None:
    """Refuse to go on from a step that was made with other settings, other data or from another model."""
    data = {**inputs.read(forget=asked, train=getattr(plan.chosen, "train", None)), **plan.kept}
    known = _record(target, "identity")
    if target.name.isdigit() and int(target.name) <= plan.finished:  # what must stay may be less by now
        data = {name: files for name, files in data.items() if name not in ("retain", "holdout")}
        known = {name: fact for name, fact in known.items() if name not in ("retain data", "holdout data")}
    options = {
        **plan.sizes,
        "wording": plan.options["wording"].record(),
        "dtype": plan.options["dtype"],
        "lora": None,
        "lora_targets": [],
    }
    weights = fingerprint(start) if start.is_dir() else None
    wanted = inputs.identity(plan.chosen, weights, data, **options)
    wanted.check(known, target)


def _record(target: Path, name: str) -> dict[str, Any]:
    """One part of the run.json of a finished step. Raises ConfigurationError if it is damaged."""
    file = target / "run.json"
    return part(read_object(file, ConfigurationError), name, dict, file, ConfigurationError)


def _linked(source: str, target: str) -> str:
    """A second name for a finished step's file, so that nothing large is written twice; a copy where that cannot be."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
    return target
