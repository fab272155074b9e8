"""CPU time and memory of choosing the top scores: expunge's streamed selection against argsort of argsort, one thread.

The scores are |x·y| of normal x and y, in tensors of the shapes of a Llama, 100 M by default. Both make the mask of the
same share of them, bit for bit (checked), each in a process of its own. Time is the CPU time of the selection alone.
Memory is the peak above what the process held before, less the scores themselves: both are given them ready. The
argsort ranks all scores at once, as WAGLE's release does; stable here, so that ties are broken the same way.

--size 10 takes a few seconds; 100 needs about 5 GB and a minute. Prints one JSON line.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from common import cpu_ms, middle, rounded
from step import resident_kib
from torch import Tensor

from expunge.attribution.topk import top_k
from expunge.models.mask import pack

WIDTH, INNER = 1024, 2816
LAYER = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "o": (WIDTH, WIDTH), "gate": (INNER, WIDTH),
         "up": (INNER, WIDTH), "down": (WIDTH, INNER), "norm": (WIDTH,)}  # fmt: skip
DRAWN = 1 << 20  # numbers drawn at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=100, help="millions of scores")
    parser.add_argument("--ratio", type=float, default=0.95, help="share to keep")
    parser.add_argument("--turns", type=int, default=1, help="how often each is measured")
    parser.add_argument("--way", choices=sorted(WAYS), help=argparse.SUPPRESS)  # the inner process
    arguments = parser.parse_args()
    total = round(arguments.size * 1e6)
    if arguments.way:
        print(json.dumps(measure(arguments.way, total, round(arguments.ratio * total))))
        return
    turns = [{way: inner(way, arguments) for way in WAYS} for _ in range(arguments.turns)]
    found = {
        way: {what: middle([turn[way][what] for turn in turns]) for what in ("cpu_ms", "peak_mib")} for way in WAYS
    }
    ours, theirs = found["streamed"], found["argsort"]
    result = {
        "benchmark": "mask",
        "argsort_time_over_ours": theirs["cpu_ms"] / ours["cpu_ms"],
        "our_memory_over_argsort": ours["peak_mib"] / theirs["peak_mib"],
        "same_bits": len({turn[way]["bits"] for turn in turns for way in WAYS}) == 1,
        "goals": {"argsort_time_over_ours": 20, "our_memory_over_argsort": 0.1, "same_bits": True},
        "measured": found,
        "scores": total,
        "kept": round(arguments.ratio * total),
        "threads": 1,
        "turns": len(turns),
    }
    print(json.dumps(rounded(result)))


def inner(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--size", str(arguments.size), "--ratio", str(arguments.ratio)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def measure(way: str, total: int, k: int) -> dict[str, float | str]:
    """CPU time and peak memory of one way, and a digest of the bits it chose."""
    WAYS[way](dict(scores(100_000)), 5_000)  # whatever is loaded or set up only once
    given = dict(scores(total))
    before = forget_peak()
    kept: dict[str, Tensor] = {}
    spent = cpu_ms(lambda: kept.update(WAYS[way](given, k)))
    digest = hashlib.sha256(b"".join(kept[name].numpy().tobytes() for name in given)).hexdigest()
    return {"cpu_ms": spent, "peak_mib": (resident_kib() - before) / 1024, "bits": digest}


def forget_peak() -> float:
    """Resident memory in KiB as of now; the peak counts from here where the system lets it, else from the start."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    return resident_kib()


def scores(total: int) -> Iterator[tuple[str, Tensor]]:
    """(name, scores) tensor by tensor until there are `total`; the last tensor is what is left."""
    draw = torch.Generator().manual_seed(0)
    layer = 0
    while total:
        for name, shape in LAYER.items():
            count = min(total, torch.Size(shape).numel())
            if not count:
                return
            values = torch.empty(count)
            for part in values.split(DRAWN):
                part.normal_(generator=draw).mul_(torch.randn(len(part), generator=draw)).abs_()
            yield f"{layer}.{name}", values
            total -= count
        layer += 1


def streamed(given: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    return top_k(given.__getitem__, {name: tuple(value.shape) for name, value in given.items()}, k)


def argsort(given: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """Rank every score among all, then keep the ranks below k."""
    flat = torch.cat([value.reshape(-1) for value in given.values()])
    kept = flat.argsort(descending=True, stable=True).argsort() < k
    sizes = [value.numel() for value in given.values()]
    return {name: pack(part) for name, part in zip(given, kept.split(sizes), strict=True)}


WAYS = {"streamed": streamed, "argsort": argsort}

if __name__ == "__main__":
    main()
