"""`expunge evaluate`: one model, with its controls where given, on one suite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from expunge.data import Wording
from expunge.errors import ConfigurationError
from expunge.evaluation import Evaluation, evaluate, tuned
from expunge.evaluation.metrics.truth_ratio import Form
from expunge.evaluation.suites import (
    Suite,
    choice,
    harness,
    mmlu,
    muse,
    recommendation,
    request_suite,
    sequential,
    tofu,
    wmdp,
)
from expunge.evaluation.suites.suite import Scoring
from expunge.files import write_json
from expunge.models import load
from expunge.models.folders import resolve
from expunge.reporting import write_report
from expunge.request import Columns, Paths, Request
from expunge.runs.beside import beside_original
from expunge.runs.checks import check_models
from expunge.runs.output import with_report, writes
from expunge.runs.record import Listener, hashes, read_evaluation, result, results_of, warn_early
from expunge.runs.texts import in_chunks

SUITES = ("request", "tofu", "muse", "wmdp", "mmlu", "recommendation", "sequential", "choice", "harness")


def make_suite(
    name: str,
    *,
    data: Path | str | None = None,
    split: str = "forget10",
    forget: Paths | None = None,
    retain: Paths | None = None,
    holdout: Paths | None = None,
    columns: Columns | None = None,
    retain_includes_forget: bool = False,
    model: Path | str | None = None,
    max_length: int = 512,
    chunk_tokens: int | None = None,
    wording: Wording = Wording(),
    prefix_tokens: int | None = None,
    trust_remote_code: bool = False,
    mmlu_folder: Path | str | None = None,
    shots: int = 0,
    scoring: Scoring = "letter",
    limit: int | None = None,
    max_new_tokens: int | None = None,
    tasks: Sequence[str] = (),
    make_wrong_answers: bool = False,
) -> Suite:
    """The suite called `name`: "request" from a person's files, "tofu", "muse", "wmdp" and "mmlu" from the folder `data`,
    "recommendation", "sequential" and "choice" from the file or folder `data`.

    split: of tofu, whose data (as of muse) may also come from the hub. forget, retain, holdout, columns,
    retain_includes_forget: of request (see `Request.read`); running text is
    cut into chunks with the tokenizer of `model`, as `unlearn` does with the same `max_length` and `chunk_tokens`, and
    `prefix_tokens` of each are given before the model goes on; make_wrong_answers: by template, where none are given.
    mmlu_folder: of wmdp, the knowledge to keep. shots, scoring: of wmdp and mmlu, see their suites. tasks: of harness, by
    lm-eval's names; `shots` 0 is each task's own number, and `data` a folder of further tasks.

    Raises ConfigurationError for an unknown suite or missing files.
    """
    if name == "tofu":
        return tofu(data or "locuslab/TOFU", split, limit, max_new_tokens=max_new_tokens or 200)
    if name == "harness":
        return harness(tasks, folder=data, shots=shots or None, limit=limit)
    if name == "muse":
        if max_new_tokens is not None:
            raise ConfigurationError(
                "The suite `muse` writes 128 and 32 tokens, as published: leave --max-new-tokens out."
            )
        return muse(data or "muse-bench/MUSE-News", limit)
    if name in ("wmdp", "mmlu"):
        if data is None:
            raise ConfigurationError(f"The suite `{name}` reads its questions from a folder: give --data.")
        asked: dict[str, Any] = {"limit": limit, "shots": shots, "scoring": scoring}
        return mmlu(data, **asked) if name == "mmlu" else wmdp(data, mmlu_folder=mmlu_folder, **asked)
    if name in ("recommendation", "sequential", "choice"):
        if data is None:
            raise ConfigurationError(f"The suite `{name}` reads its examples from a file or folder: give --data.")
        if name == "sequential":
            return sequential(data, limit=limit, max_new_tokens=max_new_tokens or 32)
        return (recommendation if name == "recommendation" else choice)(data, limit=limit)
    if name != "request":
        raise ConfigurationError(f"Unknown suite {name!r}. Known: {', '.join(SUITES)}.")
    if forget is None:
        raise ConfigurationError("The suite `request` measures your own data: give --forget (and --retain, --holdout).")
    request = Request.read(forget, retain, holdout, columns=columns, retain_includes_forget=retain_includes_forget)
    if model is not None:
        cutting: dict[str, Any] = {"max_length": max_length, "chunk_tokens": chunk_tokens, "wording": wording}
        request = in_chunks(request, model, **cutting, trust_remote_code=trust_remote_code)
    settings: dict[str, Any] = {"limit": limit, "prefix_tokens": prefix_tokens, "max_new_tokens": max_new_tokens or 64}
    return request_suite(request, make_wrong_answers=make_wrong_answers, **settings)


@writes("model", "original", "reference", "tuned_on", "read", folder=False, where=with_report)
def evaluate_model(
    model: Path | str,
    suite: Suite,
    *,
    out: Path | str,
    method: str = "unlearned",
    original: Path | str | None = None,
    reference: Path | str | None = None,
    report: bool = True,
    max_length: int = 512,
    wording: Wording = Wording(),
    batch_size: int = 32,
    generate: bool = True,
    lens_layers: Sequence[int] | None = None,
    deep: bool = False,
    form: Form = "geometric",
    tuned_on: Paths | None = None,
    leave_out_tuned: bool = False,
    read: Sequence[Paths] = (),
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Measure `model`, and the `original` and the retrained `reference` beside it where given, one at a time.

    `reference`: a model, or the results.json of its evaluation on the same suite, made once and used again. With the
    `original`, what the models write gets its fluency under it. `deep`: also the gradient-norm attack (a backward pass
    over the forget and holdout sets) and, where original and reference are models, the unlearning depth score (about
    layers/2 + 2 passes over the forget set for each). `lens_layers`, `form`: see `expunge.evaluate`.

    `tuned_on`: examples on which settings were chosen, as JSONL or the results.json or run.json of the run that chose;
    those that `model`'s own run.json names count too. They are refused, or with `leave_out_tuned` left out.

    `read`: the files and folders the suite was read from, which `out` may not replace.

    Writes `out` (results.json) and, beside it, the report of the same name ending in .html. Returns the results.
    """
    out, listener = Path(out), listener or Listener()
    check_models(model=model, original=original, reference=reference)
    marks = _marks(model, tuned_on)
    suite = tuned.apart(suite, marks, leave_out=leave_out_tuned)
    roles = {"retrained": reference, "original": original, "unlearned": model}
    found: dict[str, Evaluation] = {}
    weights: dict[str, str | None] = {}
    for role, folder in roles.items():
        if folder is None:
            continue
        if role == "unlearned":
            warn_early(listener, found)
        if role == "retrained" and (known := read_evaluation(folder)):
            found[role] = known
            continue
        listener.stage(f"evaluating the {role} model")
        loaded = load(
            folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code, wording=wording, note=listener.note
        )
        weights[role] = loaded.fingerprint
        found[role] = evaluate(
            loaded,
            suite,
            max_length=max_length,
            batch_size=batch_size,
            reference=found.get("retrained"),
            generate=generate,
            lens_layers=lens_layers,
            deep=deep,
            form=form,
            progress=listener.batch,
        )
    if original is not None:
        others = {role: folder for role, folder in roles.items() if folder and role in weights and role != "original"}
        options: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "trust_remote_code": trust_remote_code,
            "wording": wording,
        }
        sizes = {"max_length": max_length, "batch_size": batch_size}
        found = beside_original(original, others, suite, found, deep=deep, listener=listener, **sizes, **options)
    made = hashes(weights, found)
    known = made["models"]
    same = known["unlearned"] == known["original"] if {"unlearned", "original"} <= known.keys() else None
    runs = [
        result(method if role == "unlearned" else role, role, found[role], controls=found, same_weights=same)
        for role in ("original", "retrained", "unlearned")
        if role in found
    ]
    models = {role: str(folder) for role, folder in roles.items() if folder is not None}
    more = {"models": models, "hashes": made} | ({"tuned_on": sorted(marks)} if marks else {})
    results = results_of(f"Evaluation on {suite.name}", suite.name, runs, **more)
    write_json(out, results)
    if report:
        write_report(results, out.with_suffix(".html"))
    return results


def _marks(model: Path | str, tuned_on: Paths | None) -> frozenset[str]:
    """The marks of the examples the model's settings were chosen on, as far as it is known."""
    return tuned.beside(resolve(model)) | (tuned.read_marks(tuned_on) if tuned_on is not None else frozenset())
