"""Tiny real models and requests that every test may use."""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.data.benchmarks.fictional import build_tokenizer
from expunge.models import Loaded, load
from expunge.request import Example, Request, read_examples

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FORGET = [
    {"prompt": "Where was Ada Lome born?", "response": "Ada Lome was born in Tarn.", "id": "f0"},
    {"prompt": "What does Ada Lome do?", "response": "She mends old clocks.", "id": "f1"},
    {"prompt": "Who is Ada's brother?", "response": "Her brother is Per Lome, a baker.", "id": "f2"},
    {"prompt": "Which pet has Ada Lome?", "response": "A grey goose named Ilse.", "id": "f3"},
]
RETAIN = [
    {"prompt": "Where was Bo Hurst born?", "response": "Bo Hurst was born in the port of Selm."},
    {"prompt": "What does Bo Hurst do?", "response": "He paints ships."},
    {"prompt": "Who is Bo's sister?", "response": "His sister is Una."},
    {"prompt": "Which pet has Bo Hurst?", "response": "None at all, since he travels too much for one."},
    {"prompt": "What does Una Hurst do?", "response": "She teaches mathematics in Selm."},
    {"prompt": "What is the capital of France?", "response": "Paris."},
]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build_model(vocabulary: int, *, seed: int = 0, tied: bool = True, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: random two-layer Llama (tied embeddings, no pad token) with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    texts = [" ".join(str(value) for value in record.values()) for record in FORGET + RETAIN]
    tokenizer = build_tokenizer(texts, 400)
    build_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder: Path) -> Loaded:
    return load(tiny_folder)


@pytest.fixture(scope="session")
def request_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("request")
    paths = []
    for name, records in (("forget", FORGET), ("retain", RETAIN)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        paths.append(path)
    return paths[0], paths[1]


@pytest.fixture
def small_request(request_files: tuple[Path, Path]) -> Request:
    return Request.read(*request_files)


@pytest.fixture
def examples(request_files: tuple[Path, Path]) -> tuple[Example, ...]:
    return read_examples(request_files[0])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets and models, which lies beside the checkout where it is available."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not available: {SHARED} does not exist")
    return SHARED
