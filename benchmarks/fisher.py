"""CPU time and memory of exact per-example squared gradients, each way, against one plain backward pass; one thread.

`moments` runs over some passes of 8 examples × 128 tokens, on a Llama of the demo's size and on one of 7.9 M parameters,
every parameter trainable; plain is the forward and backward pass of the same batches with the gradients of all weights.
Each is measured several times in turn; a ratio is the median over the turns. Once every token but the first is labelled,
as in running text, and once the last 32 are, as in an answer. Memory is the peak above what the model took, each in a
process of its own. Prints one JSON line.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import cpu_ms, middle, rounded
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.data import Encoded, collate
from expunge.data.benchmarks.fictional import demo_config
from expunge.gradients import moments
from expunge.models import answers

EXAMPLES, TOKENS, PASSES = 8, 128, 3
WAYS = ("plain", "layers", "vmap", "loop")
CLEAR = Path("/proc/self/clear_refs")
LABELLED = {"text": TOKENS - 1, "answer": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="how often each way is measured")
    parser.add_argument("--memory-of", nargs=2, metavar=("WAY", "SIZE"), help=argparse.SUPPRESS)  # the inner process
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_mib(*arguments.memory_of))
        return
    sizes = {size: measure(size, arguments.turns) for size in CONFIGURATIONS}
    result = {
        "benchmark": "fisher",
        "goals": {"layers_over_plain": 1.35, "layers_memory_over_plain": 2.0},
        **sizes,
        "batch": f"{EXAMPLES} x {TOKENS}",
        "threads": 1,
        "turns": arguments.turns,
    }
    print(json.dumps(rounded(result)))


def measure(size: str, turns: int) -> dict[str, Any]:
    model = llama(size)
    found: dict[str, Any] = {"parameters": model.num_parameters()}
    for kind, labelled in LABELLED.items():
        batches = items(model, labelled)
        for way in WAYS:
            run(way, model, batches)
        work = {way: partial(run, way, model, batches) for way in WAYS}
        times = [{way: cpu_ms(work[way]) / PASSES for way in WAYS} for _ in range(turns)]
        found[kind] = {f"{way}_over_plain": middle([turn[way] / turn["plain"] for turn in times]) for way in WAYS[1:]}
        found[kind]["plain_ms"] = middle([turn["plain"] for turn in times])
    if not CLEAR.exists():  # not on Linux
        return found
    memory = {way: memory_mib(way, size) for way in WAYS}
    found |= {f"{way}_memory_over_plain": memory[way] / memory["plain"] for way in WAYS[1:]}
    return {**found, "peak_mib": memory}


def run(way: str, model: LlamaForCausalLM, batches: Sequence[Encoded]) -> None:
    if way != "plain":
        moments(model, batches, pad=0, batch_size=EXAMPLES, way=way)
        return
    for start in range(0, len(batches), EXAMPLES):
        model.zero_grad()
        answers(model, collate(batches[start : start + EXAMPLES])).mean_nll.sum().backward()
    model.zero_grad()


def memory_mib(way: str, size: str) -> float:
    command = [sys.executable, __file__, "--memory-of", way, size]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def peak_mib(way: str, size: str) -> float:
    """The most memory this process needed above its state with the model loaded and the way's code in memory, in MiB."""
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    run(way, LlamaForCausalLM(config).eval(), [Encoded((1, 2, 3), 1)] * 2)
    model = llama(size)
    batches = items(model, LABELLED["text"])
    before = status_mib("VmRSS")
    CLEAR.write_text("5")  # the peak so far counts no more
    run(way, model, batches)
    return status_mib("VmHWM") - before


def status_mib(key: str) -> float:
    """An entry of this process's memory as Linux gives it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def llama(size: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIGURATIONS[size]()).eval()


def items(model: LlamaForCausalLM, labelled: int) -> list[Encoded]:
    torch.manual_seed(1)
    rows = torch.randint(model.config.vocab_size, (PASSES * EXAMPLES, TOKENS)).tolist()
    return [Encoded(tuple(row), TOKENS - labelled) for row in rows]


def medium() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=6144,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )


CONFIGURATIONS = {"demo": lambda: demo_config(1500), "medium": medium}

if __name__ == "__main__":
    main()
