"""A signal ends a run with a checkpoint and a message that is true."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expunge.cli.console import shown
from expunge.training import checkpoint


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_says_so(
    tiny_folder: Path, tmp_path: Path, number: int, expected: int
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "who", "response": "me and you"}\n' * 4)
    settings = ["--set", "steps=100000", "--set", "checkpoint_every=0"]
    arguments = ["--model", str(tiny_folder), "--data", str(data), "--out", str(tmp_path / "run"), *settings]
    with subprocess.Popen(
        [sys.executable, "-m", "expunge", "finetune", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "fine-tuning" in line)
        time.sleep(1)
        process.send_signal(number)
        message = process.stderr.read()
    assert process.returncode == expected, message
    assert "--resume" in message
    assert "Traceback" not in message
    assert checkpoint.exists(tmp_path / "run.checkpoint")


def test_text_of_data_is_no_markup_and_no_escape() -> None:
    assert shown("[/INST] \x1b[31m") == "\\[/INST] \\x1b[31m"
