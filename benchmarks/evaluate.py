"""CPU time of a whole TOFU evaluation of a 5 M-parameter Llama, one thread.

`over_bare` compares all metrics of the suite with what a plain program would spend on the model alone: one forward pass
over the same sequences, each padded and computed whole, and one `generate` of transformers from the same prompts.
`scoring_over_bare` is the teacher-forced pass alone against that forward pass. Both may fall below 1: expunge computes
what sequences share once, as a prefix tree, and decodes only what the teacher-forced pass has not shown already. The
model first learns most of the rows, so that its answers are as long as real ones.

With --peer, OpenUnlearning computes seven of the metrics (its own code and configuration) on the same model and rows,
and the values of both are printed. Prints one JSON line.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from common import BATCH, EPOCHS, cpu_ms, material, middle, peer, rounded

from expunge.data import Encoded, Encoder, by_length, collate
from expunge.evaluation import Evaluation, Suite, evaluate, tofu
from expunge.models import Loaded, load

NEW_TOKENS = 200
SAME = {  # OpenUnlearning's name: expunge's
    "forget_Q_A_Prob": "forget.probability",
    "forget_Q_A_ROUGE": "forget.rouge_l",
    "forget_truth_ratio": "forget.truth_ratio",
    "exact_memorization": "forget.exact_memorization",
    "extraction_strength": "forget.extraction_strength_compat",
    "mia_min_k": "mia.min_k.auc",
    "model_utility": "model_utility",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of TOFU's files (default: invented rows)")
    parser.add_argument("--turns", type=int, default=2, help="how often everything is measured")
    parser.add_argument("--peer", type=Path, help="checkout of OpenUnlearning")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that runs it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, rows = material(Path(scratch) / "material", arguments.data, epochs=EPOCHS)
        print(json.dumps(rounded(measure(arguments, model, rows))))


def measure(arguments: argparse.Namespace, model: Path, rows: Path) -> dict[str, Any]:
    loaded, suite = load(model), tofu(rows, "forget01", max_new_tokens=NEW_TOKENS)
    sequences, prompts = inputs(suite, Encoder(loaded.tokenizer))
    results: list[Evaluation] = []
    turns: list[dict[str, float]] = []
    found: dict[str, Any] = {}
    forward(loaded, sequences[:BATCH])  # the first pass pays for what is set up once
    for _ in range(arguments.turns):
        evaluation, total, scoring = timed(loaded, suite)
        results.append(evaluation)
        turn = {
            "evaluation": total,
            "scoring": scoring,
            "bare_forward": cpu_ms(lambda: forward(loaded, sequences)) / 1000,
            "bare_generation": cpu_ms(lambda: generate(loaded, prompts)) / 1000,
        }
        turn["bare"] = turn["bare_forward"] + turn["bare_generation"]
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
        "cpu_s": {name: middle([turn[name] for turn in turns]) for name in turns[0]},
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
            "goal_peer_over_ours": 3,
            "peer_metrics": theirs,
            "largest_difference": max(abs(theirs[name] - metrics[ours]) for name, ours in SAME.items()),
        }
    return result


def timed(loaded: Loaded, suite: Suite) -> tuple[Evaluation, float, float]:
    """An evaluation, the CPU seconds it took, and those until its teacher-forced pass was done."""
    ends: dict[str, float] = {}
    start = process_time()
    evaluation = evaluate(
        loaded, suite, batch_size=BATCH, progress=lambda stage, *_: ends.update({stage: process_time()})
    )
    return evaluation, process_time() - start, ends["score"] - start


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
