"""CPU time and memory of one unlearning step: GradDiff, NPO and NGDiff on a 5 M-parameter Llama, one thread.

Each method makes 16 + 16 examples' step several times in turn; a ratio is the median over the turns. NGDiff's time is that
of 10 steps with one probe of its learning rate among them. NPO's reference log-probabilities are computed once, before
the first step: `npo_reference_in_steps` says how many GradDiff steps that pass over the forget set costs. Memory is the
peak above what the loaded model took, each method in a process of its own.

With --masked, GradDiff's and NGDiff's steps are instead measured with random masks that keep 95 and 10 % of the weights,
each against the same step without a mask: random ones keep that share of every parameter, so nothing is wholly frozen.

With --peer, OpenUnlearning's GradDiff and NPO are measured on the same model and rows between the turns. Prints one JSON
line.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

from common import BATCH, material, middle, peer, rounded

from expunge.data import Encoder
from expunge.methods import Context, method
from expunge.models import load
from expunge.request import Request

NAMES = ("graddiff", "npo", "ngdiff")
MASKED, RATIOS = ("graddiff", "ngdiff"), (0.95, 0.1)
BLOCK = 10  # steps, one of them with a probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of TOFU's files (default: invented rows)")
    parser.add_argument("--turns", type=int, default=3, help="how often each method is measured")
    parser.add_argument("--masked", action="store_true", help="measure masked steps against dense ones")
    parser.add_argument("--peer", type=Path, help="checkout of OpenUnlearning")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that runs it")
    parser.add_argument("--memory-of", choices=NAMES, help=argparse.SUPPRESS)  # the inner process: METHOD, MODEL, ROWS
    parser.add_argument("--ratio", type=float, help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_mib(arguments.memory_of, *arguments.folders, ratio=arguments.ratio))
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = material(Path(scratch) / "material", arguments.data)
        result = measure_masked(arguments.turns, *found) if arguments.masked else measure(arguments, *found)
        print(json.dumps(rounded(result)))


def measure_masked(turns: int, model: Path, rows: Path) -> dict[str, Any]:
    ratios: dict[str, list[float]] = {}
    dense: dict[str, list[float]] = {}
    for _ in range(turns):
        for name in MASKED:
            plain = step_cpu_ms(name, model, rows)[0]
            dense.setdefault(name, []).append(plain)
            for ratio in RATIOS:
                masked = step_cpu_ms(name, model, rows, ratio)[0]
                ratios.setdefault(f"{name}_keep_{ratio}", []).append(masked / plain)
    memory = {
        f"{name}{'' if ratio is None else f'_keep_{ratio}'}": memory_mib(name, model, rows, ratio)
        for name in MASKED
        for ratio in (None, *RATIOS)
    }
    return {
        "benchmark": "step",
        "masked_over_dense": {case: middle(values) for case, values in ratios.items()},
        "goal_masked_over_dense": 1.10,
        "dense_cpu_ms": {name: middle(values) for name, values in dense.items()},
        "peak_mib": memory,
        "batch": f"{BATCH} forget + {BATCH} retain",
        "threads": 1,
        "turns": turns,
    }


def measure(arguments: argparse.Namespace, model: Path, rows: Path) -> dict[str, Any]:
    turns: list[dict[str, float]] = []
    for _ in range(arguments.turns):
        turn = {}
        for name in NAMES:
            turn[name], turn[f"{name}_before"] = step_cpu_ms(name, model, rows)
        if arguments.peer:
            found = peer(
                arguments.peer_python, arguments.peer, "--model", str(model), "--rows", str(rows), "--do", "step",
                "--steps", "5",
            )  # fmt: skip
            turn |= {f"peer_{name}": value for name, value in found["step_cpu_ms"].items()}
        turns.append(turn)

    def ratio(above: str, below: str) -> float:
        return middle([turn[above] / turn[below] for turn in turns])

    memory = {name: memory_mib(name, model, rows) for name in NAMES}
    result: dict[str, Any] = {
        "benchmark": "step",
        "npo_over_graddiff": ratio("npo", "graddiff"),
        "ngdiff_over_graddiff": ratio("ngdiff", "graddiff"),
        "npo_memory_over_graddiff": memory["npo"] / memory["graddiff"],
        "goals": {"npo_over_graddiff": 1.05, "ngdiff_over_graddiff": 1.10, "npo_memory_over_graddiff": 1.1},
        "cpu_ms": {name: middle([turn[name] for turn in turns]) for name in NAMES},
        "peak_mib": memory,
        "npo_reference_in_steps": middle(
            [(turn["npo_before"] - turn["graddiff_before"]) / turn["graddiff"] for turn in turns]
        ),
        "batch": f"{BATCH} forget + {BATCH} retain",
        "threads": 1,
        "turns": len(turns),
    }
    if arguments.peer:
        result["peer"] = {
            "cpu_ms": {name: middle([turn[f"peer_{name}"] for turn in turns]) for name in ("graddiff", "npo")},
            "graddiff_over_peer": ratio("graddiff", "peer_graddiff"),
            "npo_over_peer": ratio("npo", "peer_npo"),
        }
    return result


def step_cpu_ms(name: str, model: Path, rows: Path, ratio: float | None = None) -> tuple[float, float]:
    """Mean CPU milliseconds of the BLOCK steps after the first, and those from the start to the first step's end."""
    ends: list[float] = []
    start = process_time()
    descend(name, model, rows, BLOCK + 1, ends, ratio)
    return 1000 * (ends[-1] - ends[0]) / BLOCK, 1000 * (ends[0] - start)


def descend(name: str, model: Path, rows: Path, steps: int, ends: list[float], ratio: float | None = None) -> None:
    """`steps` steps; with `ratio` under a random mask that keeps so many of the weights."""
    loaded = load(model)
    mask = {} if ratio is None else {"mask": "random", "mask.ratio": ratio}
    run = method(name, {"steps": steps, "batch_size": BATCH, "stop_retain_rise": None, **mask})
    request = Request.read(rows / "forget.jsonl", rows / "retain.jsonl")
    context = Context(Encoder(loaded.tokenizer), progress=lambda *_: ends.append(process_time()))
    if run(loaded, request, context).steps != steps:
        sys.exit(f"{name} stopped before {steps} steps were done; its time would mean nothing.")


def memory_mib(name: str, model: Path, rows: Path, ratio: float | None = None) -> float:
    command = [sys.executable, __file__, "--memory-of", name, str(model), str(rows)]
    command += [] if ratio is None else ["--ratio", str(ratio)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def peak_mib(name: str, model: Path, rows: Path, ratio: float | None = None) -> float:
    """The most memory this process needed above its first state with a model loaded, in MiB."""
    load(model)
    before = resident_kib()
    descend(name, model, rows, 2, [], ratio)  # the second step has the optimizer's state beside everything else
    return (resident_kib() - before) / 1024


def resident_kib() -> float:
    """Most memory this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss: on Linux a child process starts with its parent's
        return next(float(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1024 if sys.platform == "darwin" else most  # macOS counts bytes


if __name__ == "__main__":
    main()
