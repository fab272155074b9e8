"""`expunge edit` against `cp`: time and memory of base + α(plus − minus) on a generated checkpoint of several GB.

Three models of Llama's shapes are generated. The edit reads all three and writes one; `cp` copies one model (as many
bytes written), or all three (as many bytes read). Each is timed cold (the models dropped from the page cache first) and
warm, in turn with the others, as a process from its start to its end. A throughput is bytes read and written a second;
`edit_alone` is without the seconds Python takes to import torch and transformers. The edit hashes its output and pushes
it to the disk, which `cp` does not: `cp_synced` is `cp` with `sync` after it. Ratios are medians over the turns.

With --peer-python, a Python that has mergekit, its `task_arithmetic` makes the same model from the same files: computing
in fp32 as we do, and in the models' own dtype, which rounds at each step. Prints one JSON line.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import middle, rounded

from expunge.models.arithmetic import PIECE, values
from expunge.models.checkpoint import DTYPES, INDEX, stored, write_file

HIDDEN, INNER, KEYS, VOCABULARY = 4096, 11008, 1024, 32000
SHARD = 800_000_000  # bytes
SCALE = -0.7
LIMIT = 300e6  # bytes of memory on top of three times the largest tensor
STEP = 0.01  # how far plus and minus lie from the base, in standard deviations of its weights
# A small process in between: on Linux a child's peak memory is at least what its parent held when it began.
LAUNCH = """
import json, os, sys, time
start = time.perf_counter()
_, status, used = os.wait4(os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)
seconds, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": used.ru_maxrss * 1024 / 1e6}))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""
CODES = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0, help="least size of a model; three, and outputs, are on disk")
    parser.add_argument("--dtype", choices=CODES, default="bfloat16")
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured")
    parser.add_argument("--folder", type=Path, help="where to generate the models (default: the temporary folder)")
    parser.add_argument("--peer-python", help="a Python that has mergekit")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        place = Path(scratch)
        for seed, name in enumerate(("base", "plus", "minus")):
            generate(place / name, arguments.gb, arguments.dtype, seed)
        print(json.dumps(rounded(measure(arguments, place))))


def generate(folder: Path, gb: float, dtype: str, seed: int) -> None:
    """Write a checkpoint of Llama's shapes in shards; models of other seeds are the first one with noise added."""
    folder.mkdir()
    code = CODES[dtype]
    shapes = layout(gb, DTYPES[code].itemsize)
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * DTYPES[code].itemsize
        if filled + size > SHARD and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = (code, shape)
        filled += size
    order = {name: number for number, name in enumerate(shapes)}

    def tensor(name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(order[name])
        # A block, again and again: normal draws of every entry would take longer than all that is measured.
        block = torch.randn(1 << 20, generator=generator).mul_(0.02)
        if seed:
            noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(1000 * seed + order[name]))
            block.add_(noise, alpha=0.02 * STEP)
        count = math.prod(shapes[name])
        return block.to(DTYPES[code]).repeat(-(-count // len(block)))[:count].reshape(shapes[name])

    placed = {}
    for number, part in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / file, part, tensor, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
    total = sum(math.prod(shape) for shape in shapes.values()) * DTYPES[code].itemsize
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCABULARY,
        "intermediate_size": INNER, "num_attention_heads": 32, "num_key_value_heads": 8, "dtype": dtype,
        "num_hidden_layers": len([name for name in shapes if name.endswith("q_proj.weight")]),
        "tie_word_embeddings": False, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def layout(gb: float, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama with as many layers as it takes."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    ends: dict[str, tuple[int, ...]] = {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    layer = 0
    while sum(map(math.prod, (shapes | ends).values())) * width < gb * 1e9:
        head = f"model.layers.{layer}."
        shapes |= {
            head + "input_layernorm.weight": (HIDDEN,),
            head + "mlp.down_proj.weight": (HIDDEN, INNER),
            head + "mlp.gate_proj.weight": (INNER, HIDDEN),
            head + "mlp.up_proj.weight": (INNER, HIDDEN),
            head + "post_attention_layernorm.weight": (HIDDEN,),
            head + "self_attn.k_proj.weight": (KEYS, HIDDEN),
            head + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            head + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            head + "self_attn.v_proj.weight": (KEYS, HIDDEN),
        }
        layer += 1
    return shapes | ends


def measure(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    held = stored(place / "base")
    size, largest = sum(item.size for item in held.values()), max(item.size for item in held.values())
    tasks = commands(arguments, place)
    turns = []
    for number in range(arguments.turns):
        names = [*tasks][number % len(tasks) :] + [*tasks][: number % len(tasks)]  # none is always the first
        turns.append({way: {name: timed(tasks[name], place, way) for name in names} for way in ("cold", "warm")})
    runs = [turn[way] for turn in turns for way in turn]
    result: dict[str, Any] = {
        "benchmark": "checkpoint",
        "dtype": arguments.dtype,
        "model_gb": size / 1e9,
        "shards": len({item.file for item in held.values()}),
        **{way: summary([turn[way] for turn in turns], size) for way in ("cold", "warm")},
        "peak_mb": max(run["edit"]["peak_mb"] for run in runs),
        "limit_mb": (3 * largest + LIMIT) / 1e6,
        "goals": {"throughput_over_cp": 0.7, "over_mergekit": 1.0, "steps_apart": 1, "peak_mb": "limit_mb"},
        "turns": len(turns),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }
    if arguments.peer_python:
        made = {name: output(tasks[name], place, name) for name in ("edit", "mergekit")}
        result["mergekit"] = {
            "peak_mb": max(run["mergekit"]["peak_mb"] for run in runs),
            **compare(place / "base", made["edit"], made["mergekit"]),
        }
    return result


def commands(arguments: argparse.Namespace, place: Path) -> dict[str, list[str]]:
    """What is timed; each writes to the folder `out`."""
    base, plus, minus, out = (place / name for name in ("base", "plus", "minus", "out"))
    edit = ["edit", "--base", base, "--plus", plus, "--minus", minus, "--scale", SCALE, "--out", out, "--quiet"]
    found = {
        "edit": [sys.executable, "-m", "expunge", *edit],
        "cp": ["cp", "-r", base, out],
        "cp_synced": ["sh", "-c", f"cp -r {base} {out} && sync -f {out}"],
        "cp_three": ["sh", "-c", f"mkdir {out} && cp -r {base} {plus} {minus} {out}"],
    }
    if arguments.peer_python:
        for name, dtype in (("mergekit", "float32"), ("mergekit_rounding_each_step", arguments.dtype)):
            recipe = {  # base + α(plus − base) − α(minus − base), which is base + α(plus − minus)
                "merge_method": "task_arithmetic",
                "base_model": str(base),
                "models": [
                    {"model": str(plus), "parameters": {"weight": SCALE}},
                    {"model": str(minus), "parameters": {"weight": -SCALE}},
                ],
                "dtype": dtype,
                "out_dtype": arguments.dtype,
            }
            (place / f"{name}.yaml").write_text(json.dumps(recipe))
            command = Path(arguments.peer_python).with_name("mergekit-yaml")
            found[name] = [command, place / f"{name}.yaml", out, "--no-copy-tokenizer", "--quiet"]
    return {name: [str(word) for word in command] for name, command in found.items()}


def timed(command: list[str], place: Path, way: str) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of one process, after which its output is removed."""
    for file in (file for name in ("base", "plus", "minus") for file in sorted((place / name).glob("*.safetensors"))):
        prepare(file, way)
    os.sync()
    done = subprocess.run([sys.executable, "-c", LAUNCH, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} could not be measured (see above).")
    shutil.rmtree(place / "out", ignore_errors=True)
    found = json.loads(done.stdout.splitlines()[-1])
    alone = re.search(r"([\d.]+) s, [\d.]+ GB/s", done.stdout)
    return found | ({"alone": float(alone[1])} if alone else {})


def prepare(file: Path, way: str) -> None:
    """Take a file out of the page cache, or bring it in."""
    handle = os.open(file, os.O_RDONLY)
    if way == "cold":
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    else:
        while os.read(handle, 1 << 24):
            pass
    os.close(handle)


def summary(turns: list[dict[str, dict[str, float]]], size: int) -> dict[str, Any]:
    """Medians: the edit reads three models and writes one, `cp` reads as much as it writes."""
    models = {"edit": 4, "edit_alone": 4, "cp": 2, "cp_synced": 2, "cp_three": 6}  # read and written
    for turn in turns:
        turn["edit_alone"] = {**turn["edit"], "seconds": turn["edit"]["alone"]}
    speed = {name: [count * size / turn[name]["seconds"] / 1e9 for turn in turns] for name, count in models.items()}
    found: dict[str, Any] = {
        f"{ours}_over_{theirs}": middle([one / other for one, other in zip(speed[ours], speed[theirs], strict=True)])
        for ours in ("edit_alone", "edit")
        for theirs in ("cp", "cp_synced", "cp_three")
    }
    found["gb_per_s"] = {name: middle(values) for name, values in speed.items()}
    for unit in ("seconds", "cpu"):
        found[unit] = {name: middle([turn[name][unit] for turn in turns]) for name in turns[0]}
    del found["cpu"]["edit_alone"]
    if "mergekit" in turns[0]:
        for name in ("mergekit", "mergekit_rounding_each_step"):
            found[f"edit_over_{name}"] = middle([turn["edit"]["seconds"] / turn[name]["seconds"] for turn in turns])
    return found


def output(command: list[str], place: Path, name: str) -> Path:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (place / "out").rename(place / name)


def compare(base: Path, ours: Path, theirs: Path) -> dict[str, float]:
    """How far two results lie apart.

    `steps_apart`: the largest difference in rounding steps of the dtype, taken at the size of the base's entry or the
    result's, whichever is larger: where the two cancel, fp32 itself leaves more than a step of what is left.
    `equal`: the share of entries with the same value.
    """
    start, one, other = stored(base), stored(ours), stored(theirs)
    if not start.keys() == one.keys() == other.keys():
        sys.exit("mergekit's result has other tensors.")
    most, equal, entries = 0.0, 0, 0
    for name, item in one.items():
        sides = [values(folder[name]) for folder in (start, one, other)]
        for begin in range(0, math.prod(item.shape), PIECE):
            old, a, b = (side(begin, min(begin + PIECE, math.prod(item.shape))) for side in sides)
            largest = torch.stack([old, a, b]).double().abs().amax(0)
            step = torch.finfo(a.dtype).eps * torch.exp2(torch.frexp(largest)[1].double() - 1)
            most = max(most, float(((a.double() - b.double()).abs() / step).max()))
            equal, entries = equal + int((a == b).sum()), entries + len(a)
    return {"steps_apart": most, "equal": equal / entries}


if __name__ == "__main__":
    main()
