"""Two processes on gloo give what one process gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from expunge.data import Encoder
from expunge.methods import Context, method
from expunge.models import load
from expunge.request import Request

name, model, forget, retain, out = sys.argv[1:]
loaded = load(model, device="cpu")
settings = {"steps": 3, "lr": 0.01, "batch_size": 4, "accumulation": 1, "optimizer": "sgd"}
history = method(name, settings)(loaded, Request.read(forget, retain), Context(Encoder(loaded.tokenizer)))
rank = int(__import__("os").environ.get("RANK", 0))
losses = torch.tensor([[entry["forget_loss"], entry["retain_loss"]] for entry in history.log], dtype=torch.float64)
save_file({"losses": losses, **{n: p.detach().clone() for n, p in loaded.model.named_parameters()}}, f"{out}.{rank}")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ngdiff", "npo"])
def test_two_processes_equal_one(tiny_folder, request_files, tmp_path, name) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "src")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    for how, out in (([], "one"), (launch, "two")):
        command = [sys.executable, *how, script, name, tiny_folder, *request_files, tmp_path / out]
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (load_file(tmp_path / file) for file in ("one.0", "two.0", "two.1"))
    for key, value in one.items():
        assert (first[key] - second[key]).abs().max() == 0, key
        assert (first[key] - value).abs().max() <= 1e-5 * value.abs().max(), key
