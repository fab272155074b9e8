"""What every benchmark shares: the same small Llama and the same TOFU files, as folders on disk, and one thread."""

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)

VOCABULARY, BATCH = 4096, 16
EPOCHS = 15  # until the model knows most of the rows
SMALL = 8  # examples a step when the model learns the rows: more steps for the same time
SETS = {  # TOFU's file: (how many wrong answers a row has, whether it also has a paraphrased answer)
    "forget01": (0, False),
    "forget01_perturbed": (5, True),
    "holdout01": (0, False),
    "retain99": (0, False),
    "retain_perturbed": (5, True),
    "real_authors_perturbed": (3, False),
    "world_facts_perturbed": (3, False),
}
KNOWN = ("forget01", "retain99", "real_authors_perturbed", "world_facts_perturbed")
SYLLABLES = re.findall("..", "bacedifoguhajekilomunaperisotuvawexiyozubrcrdofi")


def material(folder: Path, source: Path | None = None, *, rows: int = 40, epochs: int = 0) -> tuple[Path, Path]:
    """Write a 5 M-parameter Llama and the first `rows` rows of each of TOFU's files; return (model, data) folders.

    The rows come from `source`, a folder of TOFU's files, or are invented. With `epochs`, the model is first trained
    that often on the rows that count as known, so that the metrics and the length of its answers are those of a
    model that knows them.
    """
    data, model_folder = folder / "data", folder / "model"
    data.mkdir(parents=True)
    sets = {name: _read(source, name) if source else _invented(name, rows) for name in SETS}
    sets = {name: records[:rows] for name, records in sets.items()}
    for name, records in sets.items():
        (data / f"{name}.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, parts in {"forget": ["forget01"], "retain": ["retain99"]}.items():  # the names of a request's files
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for part in parts for row in sets[part]))
    texts = [text(record) for records in sets.values() for record in records]
    tokenizer = _tokenizer(texts)
    model = _llama()
    known = [record for name in KNOWN for record in sets[name]]
    if epochs:
        _memorise(model, tokenizer, [text(record) for record in known], epochs)
    model.save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)
    return model_folder, data


def text(record: dict[str, Any]) -> str:
    return f"Question: {record['question']}\nAnswer: {record['answer']}"


def cpu_ms(work: Callable[[], Any]) -> float:
    """CPU milliseconds of this process that `work` takes."""
    start = process_time()
    work()
    return 1000 * (process_time() - start)


def peer(python: str, path: Path, *arguments: str) -> dict[str, Any]:
    """Measure OpenUnlearning, checked out at `path`, in a process of its own."""
    script = Path(__file__).with_name("peer_openunlearning.py")
    command = [python, str(script), "--peer", str(path), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"OpenUnlearning could not be measured (see above): {script.name} ended with {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def rounded(value: Any, digits: int = 4) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _read(source: Path, name: str) -> list[dict[str, Any]]:
    path = source / f"{name}.json"
    if not path.is_file():
        sys.exit(f"{path}: no such file. --data must hold TOFU's files: {', '.join(SETS)} (.json).")
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _invented(name: str, rows: int) -> list[dict[str, Any]]:
    """Rows of TOFU's shape and about its lengths about people who do not exist."""
    wrong, paraphrased = SETS[name]
    base = name.removesuffix("_perturbed").replace("99", "").replace("01", "")
    draw = random.Random(base)
    records = []
    for _ in range(rows):
        who, said = _name(draw), " ".join(_name(draw) for _ in range(draw.randint(4, 14)))
        others = [_name(draw) for _ in range(wrong)]
        record: dict[str, Any] = {"question": f"What is known of {who}, and what did {who} write?"}
        record["answer"] = f"The author {who} is known for the works {said}."
        if paraphrased:
            record["paraphrased_answer"] = f"Works such as {said} were written by {who}."
        if wrong:
            record["perturbed_answer"] = [f"Works such as {said} were written by {other}." for other in others]
        records.append(record)
        draw.seed(f"{base} {len(records)}")  # row n is the same in a set and in its perturbed form
    return records


def _name(draw: random.Random) -> str:
    return " ".join("".join(draw.choices(SYLLABLES, k=2)).title() for _ in range(2))


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def _memorise(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], epochs: int) -> None:
    rows = [torch.tensor([*tokenizer(item)["input_ids"], tokenizer.eos_token_id]) for item in texts]
    lengths = torch.tensor([len(row) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.0)
    total = epochs * len(lengths.split(SMALL))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 10, (total - step) / (0.3 * total))
    )
    model.train()
    for _ in range(epochs):
        alike = (lengths + 4 * torch.rand(len(rows))).argsort().split(SMALL)  # of like length, so little is padding
        for index in torch.randperm(len(alike)):
            ids = torch.nn.utils.rnn.pad_sequence([rows[row] for row in alike[index]], batch_first=True)
            loss = model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()


def middle(values: list[float]) -> float:
    return float(median(values))
