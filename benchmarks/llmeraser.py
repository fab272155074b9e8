"""How many times sooner LLMEraser removes rows from an adapter than retraining does, in CPU time of one thread.

A LoRA adapter (r 8 on the query and value projections) on `--rows` rows of yes/no recommendation, of which `--share`
are removed. LLMEraser runs in full, H over `--subset` rows, `--turns` times, and its median counts. Retraining costs the
same at every step: the difference of a run of 2k and one of k steps gives a step (k: `--steps`), and from it the cost of
`--epochs` epochs in batches of 16. Without `--model` a demo-size Llama is used. Prints one JSON line.
"""

import argparse
import json
from pathlib import Path
from time import process_time
from typing import Any

import torch
from common import middle, rounded
from transformers import LlamaForCausalLM

from expunge.data.benchmarks import recommendation
from expunge.data.benchmarks.fictional import build_tokenizer, demo_config, plain_texts
from expunge.data.benchmarks.task import Task
from expunge.methods import Context, LLMEraser
from expunge.models import Loaded, load, new_adapter
from expunge.models.adapters import restart
from expunge.models.weights import copied, trainable
from expunge.training import Finetuning

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--share", type=float, default=0.01, help="of the rows, to be removed")
    parser.add_argument("--epochs", type=int, default=5, help="of retraining")
    parser.add_argument("--steps", type=int, default=10, help="k: of retraining, to learn what a step costs")
    parser.add_argument("--subset", type=int, default=32, help="rows that H is taken over")
    parser.add_argument("--turns", type=int, default=3)
    torch.set_num_threads(1)
    print(json.dumps(rounded(measure(parser.parse_args()))))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    task = recommendation.make(0, arguments.rows, test=2, share=arguments.share)
    start = load(arguments.model) if arguments.model else untrained(task)
    loaded = new_adapter(start, 8, alpha=16, targets=("q_proj", "v_proj"))
    short, long = (trained(loaded, task, steps) for steps in (arguments.steps, 2 * arguments.steps))
    step = (long - short) / arguments.steps
    steps = arguments.epochs * -(-len(task.clean) // BATCH)
    retraining = max(0.0, short - arguments.steps * step) + steps * step
    eraser = LLMEraser(subset=arguments.subset, batch_size=32, factors=(300.0, 1000.0, 3000.0), tolerance=0.1)
    before = {name: tensor.clone() for name, tensor in copied(trainable(loaded)).items()}
    spent, solve = [], {}
    for _ in range(arguments.turns):
        hold(loaded, before)
        begin = process_time()
        history = eraser(loaded, task.request, Context(loaded.encoder(256)))
        spent.append(process_time() - begin)
        (solve,) = history.found["solve"]["rounds"]
    return {
        "benchmark": "llmeraser",
        "times_faster": retraining / middle(spent),
        "goal": 30,
        "cpu_s": {"llmeraser": middle(spent), "retraining_by_its_step": retraining, "step": step},
        "steps": steps,
        "products": solve["products"],
        "residual": solve["residual"],
        "parameters": sum(tensor.numel() for tensor in before.values()),
        "rows": arguments.rows,
        "removed": len(task.forget),
        "epochs": arguments.epochs,
        "subset": arguments.subset,
        "turns": arguments.turns,
        "threads": 1,
    }


def untrained(task: Task) -> Loaded:
    """A demo-size Llama that knows the task's words."""
    tokenizer = build_tokenizer(plain_texts(task.train))
    torch.manual_seed(0)
    return Loaded(LlamaForCausalLM(demo_config(len(tokenizer))).eval(), tokenizer, Path())


def trained(loaded: Loaded, task: Task, steps: int) -> float:
    """CPU seconds of `steps` steps of retraining from the start, encoding included."""
    restart(loaded, 0, "The benchmark")
    recipe = Finetuning(lr=1e-3, steps=steps, batch_size=BATCH, weight_decay=0.0, checkpoint_every=0)
    begin = process_time()
    recipe(loaded, task.clean, loaded.encoder(256))
    return process_time() - begin


@torch.no_grad()
def hold(loaded: Loaded, weights: dict[str, torch.Tensor]) -> None:
    for name, param in trainable(loaded).items():
        param.copy_(weights[name])


if __name__ == "__main__":
    main()
