"""`expunge evaluate`: one model, with its controls where given, on one suite."""

from pathlib import Path
from typing import Any, Literal

from expunge.errors import ConfigurationError
from expunge.evaluation import Evaluation, evaluate
from expunge.evaluation.suites import Suite, request_suite, tofu
from expunge.files import refuse_existing, write_json
from expunge.models import load
from expunge.reporting import write_report
from expunge.request import Request
from expunge.runs.record import Listener, read_evaluation, result, results_of

SUITES = ("request", "tofu")


def make_suite(
    name: str,
    *,
    data: Path | str | None = None,
    split: str = "forget10",
    forget: Path | str | None = None,
    retain: Path | str | None = None,
    holdout: Path | str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
) -> Suite:
    """The suite called `name`: "request" from JSONL files, "tofu" from the folder `data` or from the hub.

    Raises ConfigurationError for an unknown suite or missing files.
    """
    if name == "tofu":
        return tofu(data or "locuslab/TOFU", split, limit, max_new_tokens=max_new_tokens or 200)
    if name != "request":
        raise ConfigurationError(f"Unknown suite {name!r}. Known: {', '.join(SUITES)}.")
    if forget is None:
        raise ConfigurationError("The suite `request` measures your own data: give --forget (and --retain, --holdout).")
    return request_suite(Request.read(forget, retain, holdout), limit=limit, max_new_tokens=max_new_tokens or 64)


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
    batch_size: int = 32,
    generate: bool = True,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Measure `model`, and the `original` and the retrained `reference` beside it where given, one at a time.

    `reference`: a model, or the results.json of its evaluation on the same suite, made once and used again.

    Writes `out` (results.json) and, beside it, the report of the same name ending in .html. Returns the results.
    """
    out, listener = Path(out), listener or Listener()
    refuse_existing(out, overwrite=overwrite)
    roles = {"retrained": reference, "original": original, "unlearned": model}
    found: dict[str, Evaluation] = {}
    for role, folder in roles.items():
        if folder is None:
            continue
        if role == "retrained" and (known := read_evaluation(folder)):
            found[role] = known
            continue
        listener.stage(f"evaluating the {role} model")
        loaded = load(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        found[role] = evaluate(
            loaded,
            suite,
            max_length=max_length,
            batch_size=batch_size,
            reference=found.get("retrained"),
            generate=generate,
            progress=listener.batch,
        )
    runs = [
        result(method if role == "unlearned" else role, role, found[role])
        for role in ("original", "retrained", "unlearned")
        if role in found
    ]
    models = {role: str(folder) for role, folder in roles.items() if folder is not None}
    results = results_of(f"Evaluation on {suite.name}", suite.name, runs, models=models)
    write_json(out, results)
    if report:
        write_report(results, out.with_suffix(".html"))
    return results
