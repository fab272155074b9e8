"""CPU time of a whole TOFU evaluation of a 5 M-parameter Llama, one thread.

`over_bare` compares all metrics of the suite with what a plain program would spend on the model alone: one forward pass
over the same sequences, each padded and computed whole, and one `generate` of transformers from the same prompts.
`scoring_over_bare` is the teacher-forced pass with all of its metrics against that forward pass; `without_lens` leaves the
logit lens out of it. All may fall below 1: expunge computes what sequences share once, as a prefix tree, and decodes
only what the teacher-forced pass has not shown already. The model first learns most of the rows, so that its answers are
as long as real ones.

`tokens_per_s`: new tokens per CPU second of expunge's generation, nothing known of them before, and of `generate` called
for one prompt after another. `peak_mib`: memory a process needs beyond what loading the model took, for a bare forward
pass, for scoring alone, and for scoring with every metric of every set.

With --peer, OpenUnlearning computes seven of the metrics (its own code and configuration) on the same model and rows,
and the values of both are printed; `definitions_that_differ` says where the two mean different things, and what of ours
is compared. Prints one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from common import BATCH, EPOCHS, cpu_ms, material, middle, peer, rounded

from expunge.data import Encoded, Encoder, by_length, collate
from expunge.evaluation import Evaluation, Suite, evaluate, score, tofu
from expunge.evaluation.generation import greedy
from expunge.models import Loaded, load

NEW_TOKENS = 200
SINGLES = 40  # prompts that are answered one by one
GOALS = {"over_bare": 1.4, "scoring_over_bare": 1.4, "tokens_ratio": 3, "peer_over_ours": 3}
MEASURES = ("forward", "score", "evaluate")
SAME = {  # OpenUnlearning's name: expunge's
    "forget_Q_A_Prob": "forget.probability",
    "forget_Q_A_ROUGE": "forget.rouge_l",
    "forget_truth_ratio": "forget.truth_ratio",
    "exact_memorization": "forget.exact_memorization",
    "extraction_strength": "forget.extraction_strength_compat",
    "mia_min_k": "mia.min_k.auc",
    "model_utility": "model_utility",
}
DIFFERENT = {
    "extraction strength": "an answer of which nothing follows has 0 here, 1/T there: compared by the compat form",
    "truth ratio": "R is the same; there 1e-10 is added to denominators, and by default min(R, 1/R) here is of R itself",
    "probability among options": "there 1e-10 is added to the denominator",
    "min-k++": "there the variance is at least 1e-6, here the standard deviation at least 1e-3: the same",
    "privleak": "the same formula; without a retrained model there the AUC .5 stands in, here the metric is absent",
    "forget quality": "the same test; there on 1/(R + 1e-10) in one place, which leaves the p-value unless R is near 0",
    "exact memorization, min-k, extraction strength": "both leave the end-of-sequence token out",
    "membership AUC": "1 where forgotten examples look trained on, in both",
    "ROUGE-L": "both stem; the longest common subsequence is the same",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of TOFU's files (default: invented rows)")
    parser.add_argument("--model", type=Path, help="a model folder to measure instead of the 5 M Llama (with --data)")
    parser.add_argument("--limit", type=int, help="examples of each set")
    parser.add_argument("--turns", type=int, default=2, help="how often everything is measured")
    parser.add_argument("--peer", type=Path, help="checkout of OpenUnlearning")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that runs it")
    parser.add_argument("--memory", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(peak_mib(*arguments.memory))
        return
    if arguments.model:
        print(json.dumps(rounded(measure(arguments, arguments.model, arguments.data))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model, rows = material(Path(scratch) / "material", arguments.data, epochs=EPOCHS)
        print(json.dumps(rounded(measure(arguments, model, rows))))


def measure(arguments: argparse.Namespace, model: Path, rows: Path) -> dict[str, Any]:
    loaded, suite = load(model), tofu(rows, "forget01", arguments.limit, max_new_tokens=NEW_TOKENS)
    sequences, prompts = inputs(suite, Encoder(loaded.tokenizer))
    results: list[Evaluation] = []
    turns: list[dict[str, float]] = []
    found: dict[str, Any] = {}
    forward(loaded, sequences[:BATCH])  # the first pass pays for what is set up once
    for _ in range(arguments.turns):
        evaluation, total, scoring = timed(loaded, suite)
        results.append(evaluation)
        _, without_lens, scoring_without_lens = timed(loaded, suite, lens_layers=())
        turn = {
            "evaluation": total,
            "evaluation_without_lens": without_lens,
            "scoring": scoring,
            "scoring_without_lens": scoring_without_lens,
            "bare_forward": cpu_ms(lambda: forward(loaded, sequences)) / 1000,
            "bare_generation": cpu_ms(lambda: generate(loaded, prompts)) / 1000,
        }
        turn["bare"] = turn["bare_forward"] + turn["bare_generation"]
        turn |= rates(loaded, prompts)
        if arguments.peer:
            found = peer(
                arguments.peer_python, arguments.peer, "--model", str(model), "--rows", str(rows), "--do", "evaluate"
            )
            turn["peer"] = found["evaluation_cpu_s"]
        turns.append(turn)

    def ratio(above: str, below: str) -> float:
        return middle([turn[above] / turn[below] for turn in turns])

    metrics = results[-1].metrics
    result: dict[str, Any] = {
        "benchmark": "evaluate",
        "over_bare": ratio("evaluation", "bare"),
        "scoring_over_bare": ratio("scoring", "bare_forward"),
        "over_bare_without_lens": ratio("evaluation_without_lens", "bare"),
        "scoring_over_bare_without_lens": ratio("scoring_without_lens", "bare_forward"),
        "tokens_ratio": ratio("tokens_per_s", "tokens_per_s_one_by_one"),
        "cpu_s": {name: middle([turn[name] for turn in turns]) for name in turns[0] if "tokens" not in name},
        "tokens_per_s": {
            name: middle([turn[key] for turn in turns])
            for name, key in (("batched", "tokens_per_s"), ("one_by_one", "tokens_per_s_one_by_one"))
        },
        "peak_mib": memory(model, rows, arguments.limit),
        "kept_bytes_per_token": kept_bytes(loaded, sequences[:BATCH]),
        "goals": GOALS if arguments.peer else {name: goal for name, goal in GOALS.items() if "peer" not in name},
        "metrics": {name: metrics[name] for name in SAME.values()},
        "metrics_in_all": len(metrics),
        "sequences": len(sequences),
        "prompts": len(prompts),
        "batch": BATCH,
        "threads": 1,
        "turns": len(turns),
    }
    if arguments.peer:
        theirs = found["metrics"]
        result |= {
            "peer_over_ours": ratio("peer", "evaluation"),
            "peer_metrics": theirs,
            "largest_difference": max(abs(theirs[name] - metrics[ours]) for name, ours in SAME.items()),
            "definitions_that_differ": DIFFERENT,
        }
    return result


def timed(loaded: Loaded, suite: Suite, **settings: Any) -> tuple[Evaluation, float, float]:
    """An evaluation, the CPU seconds it took, and those until its teacher-forced pass was done."""
    ends: dict[str, float] = {}
    start = process_time()
    evaluation = evaluate(
        loaded, suite, batch_size=BATCH, progress=lambda stage, *_: ends.update({stage: process_time()}), **settings
    )
    return evaluation, process_time() - start, ends["score"] - start


def rates(loaded: Loaded, prompts: Sequence[list[int]]) -> dict[str, float]:
    """New tokens per CPU second: all prompts in expunge's flock, and some of them one by one with `generate`."""
    model: Any = loaded.model
    distinct = [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))]
    new: list[list[int]] = []
    took = cpu_ms(lambda: new.extend(flock(loaded, distinct))) / 1000

    def alone() -> int:
        tokens = 0
        for prompt in distinct[:: max(1, len(distinct) // SINGLES)]:
            ids = torch.tensor([prompt])
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS
            )
            tokens += out.shape[1] - ids.shape[1]
        return tokens

    counted: list[int] = []
    with torch.inference_mode():
        slow = cpu_ms(lambda: counted.append(alone())) / 1000
    ends = sum(len(row) + (len(row) < NEW_TOKENS) for row in new)  # `generate` counts the end token too
    return {"tokens_per_s": ends / took, "tokens_per_s_one_by_one": counted[0] / slow}


@torch.inference_mode()
def flock(loaded: Loaded, prompts: Sequence[list[int]]) -> list[list[int]]:
    return greedy(loaded, prompts, NEW_TOKENS, batch_size=4 * BATCH)


def memory(model: Path, rows: Path, limit: int | None) -> dict[str, float]:
    """Peak memory of each kind of work in a process of its own, in MiB beyond what it held before."""
    found = {}
    for what in MEASURES:
        command = [sys.executable, __file__, "--memory", what, str(model), str(rows), *([str(limit)] if limit else [])]
        found[what] = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def peak_mib(what: str, model: str, rows: str, limit: str = "1000000") -> float:
    """Of Linux, which can forget an earlier peak; elsewhere NaN."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    loaded, suite = load(model), tofu(rows, "forget01", int(limit), max_new_tokens=NEW_TOKENS)
    sequences, _ = inputs(suite, Encoder(loaded.tokenizer))
    evaluate(loaded, tofu(rows, "forget01", 2), generate=False)  # what is imported and set up once
    if not forget.exists():
        return float("nan")

    def kib(name: str) -> int:
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(f"{name}:")))

    forget.write_text("5")
    before = kib("VmRSS")
    if what == "forward":
        forward(loaded, sequences)
    elif what == "score":
        score(loaded, sequences, batch_size=BATCH)
    else:
        evaluate(loaded, suite, batch_size=BATCH, generate=False)
    return (kib("VmHWM") - before) / 1024


def kept_bytes(loaded: Loaded, sequences: Sequence[Encoded]) -> dict[str, float]:
    """What is kept of each labelled token after its batch, and what its logits would take."""
    records = score(loaded, sequences, batch_size=BATCH)
    fields = ("logprob", "correct", "mean_logprob", "std_logprob")
    size = sum(getattr(record, name).nbytes for record in records for name in fields)
    return {"records": size / sum(len(item.labels) for item in sequences), "logits": 4.0 * len(loaded.tokenizer)}


def inputs(suite: Suite, encoder: Encoder) -> tuple[list[Encoded], list[list[int]]]:
    """Every distinct sequence that the suite's metrics are about, and the prompts that are answered."""
    sequences: dict[Encoded, None] = {}
    prompts = []
    for name, examples in suite.sets.items():
        for example in examples:
            others = [example.paraphrased_response] if example.paraphrased_response else []
            for response in (example.response, *others, *example.wrong_responses):
                sequences[encoder.pair(example, example.prompt, response)] = None
            if name != "holdout":
                prompts.append(encoder.prompt(example))
    return list(sequences), prompts


@torch.inference_mode()
def forward(loaded: Loaded, sequences: Sequence[Encoded]) -> None:
    for part in by_length(sequences, BATCH):
        loaded.model(input_ids=collate([sequences[index] for index in part], loaded.pad).ids, use_cache=False)


@torch.inference_mode()
def generate(loaded: Loaded, prompts: Sequence[list[int]]) -> None:
    model: Any = loaded.model
    for part in batches(prompts):
        length = max(map(len, part))
        ids = torch.tensor([[loaded.pad] * (length - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in part])
        model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS)


def batches(prompts: Sequence[list[int]]) -> Iterator[Sequence[list[int]]]:
    for start in range(0, len(prompts), BATCH):
        yield prompts[start : start + BATCH]


if __name__ == "__main__":
    main()
