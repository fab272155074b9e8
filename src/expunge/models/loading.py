"""Load and save models: safetensors only, no remote code, errors a person can act on."""

import difflib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from expunge.data import Encoder, Wording
from expunge.errors import ModelError
from expunge.models.stamp import Stamp

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ADAPTER_CONFIG = "adapter_config.json"
transformers_logging.disable_progress_bar()  # expunge shows its own progress


@dataclass(frozen=True)
class Loaded:
    """A causal language model, its tokenizer, the folder both came from, and how examples are put to it.

    `model` is a transformers model, or a PEFT model where the folder is an adapter's or a new adapter was asked for.
    `stamp`: the files as they were when they were read.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    stamp: Stamp | None = None
    wording: Wording = Wording()

    @cached_property
    def fingerprint(self) -> str | None:
        """The fingerprint of the weights it was loaded from (see `models.fingerprint`); None if they are no folder here.

        Taken when it is first asked for, and held. Raises ModelError if the files have changed since they were read.
        """
        from expunge.models.fingerprint import as_loaded  # it reads folders by this file's rules

        return as_loaded(self)

    @property
    def is_adapter(self) -> bool:
        """Whether only an adapter's parameters are trained, the base weights being frozen."""
        return hasattr(self.model, "peft_config")

    @property
    def positions(self) -> int | None:
        """How many tokens the model can look at, or None where its configuration sets no limit."""
        inner: Any = self.model.get_base_model() if self.is_adapter else self.model  # pyrefly: ignore
        return getattr(inner.config, "max_position_embeddings", None)

    def encoder(self, max_length: int = 512) -> Encoder:
        """An encoder with this model's tokenizer; its cap is never more than the model has positions for."""
        return Encoder(self.tokenizer, min(max_length, self.positions or max_length), self.wording)

    @property
    def pad(self) -> int:
        """A token id to fill batches with; its identity never matters."""
        found = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in found if token is not None)


def load(
    folder: Path | str,
    *,
    dtype: Dtype = "float32",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    wording: Wording = Wording(),
) -> Loaded:
    """Load a model folder: a Hugging Face causal LM, a PEFT adapter, or an expunge run (its `model` folder).

    A name that is no folder is looked up on the hub. Weights must be safetensors; `dtype` is that of the weights in
    memory ("auto": the checkpoint's). Raises ModelError if the folder is missing, incomplete, not a causal LM, or
    holds pickled weights only.
    """
    folder = resolve(folder)
    stamp = Stamp.of(folder, *([Path(adapter_base(folder) or "")] if is_adapter_folder(folder) else []))
    if is_adapter_folder(folder):
        model, tokenizer = _load_adapter(folder, dtype, trust_remote_code)
    else:
        model = _load_model(folder, dtype, trust_remote_code)
        tokenizer = _load_tokenizer(folder, trust_remote_code)
    check_vocabulary(model, tokenizer, folder)
    model.eval()
    nn.Module.to(model, device or default_device())
    return Loaded(model, tokenizer, folder, stamp, wording)


def open_encoder(
    folder: Path | str, max_length: int = 512, *, trust_remote_code: bool = False, wording: Wording = Wording()
) -> Encoder:
    """The encoder of a model folder (as `Loaded.encoder`), without its weights. Raises ModelError as `load` does."""
    folder = resolve(folder)
    base = resolve(adapter_base(folder)) if is_adapter_folder(folder) else folder
    has_tokenizer = base == folder or (folder / "tokenizer_config.json").is_file()
    tokenizer = _load_tokenizer(folder if has_tokenizer else base, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The configuration of {base} could not be read: {_first_line(error)}") from error
    positions = getattr(config, "max_position_embeddings", None)
    return Encoder(tokenizer, min(max_length, positions or max_length), wording)


def resolve(folder: Path | str) -> Path:
    """The folder that holds the weights: the given one, or the `model` folder of an expunge run."""
    folder = Path(folder)
    if (folder / "run.json").is_file() and (folder / "model").is_dir():
        return folder / "model"
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file. {_instead(folder)}")
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) != 2):
        near = difflib.get_close_matches(folder.name, _names(folder.parent), n=1, cutoff=0.5)
        raise ModelError(f"{folder}: no such folder. " + (f"Did you mean {folder.parent / near[0]}?" if near else ""))
    if (folder / "run.json").is_file() and (folder / "patch.safetensors").is_file():
        file = folder / "patch.safetensors"
        raise ModelError(f"{folder} is a run that wrote a patch and no model. {_instead(file)}")
    if folder.is_dir() and not (folder / "config.json").is_file() and not is_adapter_folder(folder):
        raise ModelError(f"{folder} holds neither config.json nor {ADAPTER_CONFIG}: it is not a model folder.")
    return folder


def _instead(file: Path) -> str:
    """What to do with a file that is given in place of a model folder."""
    ending = file.suffix.lower()
    if ending == ".gguf":
        return f"Make a model folder of it: expunge convert {file} --out DIR."
    if ending in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return "Pickled weights could run code and are not loaded: save the model with save_pretrained, as safetensors."
    if ending == ".json":
        return "A file of results can be a --reference only; here a model folder is needed."
    if file.name.startswith("patch"):
        return f"It is a patch: expunge patch apply --patch {file} --model BASE --out DIR makes a model of it."
    if ending in (".csv", ".tsv", ".jsonl", ".txt", ".parquet"):
        return "It holds data: give it as --forget, --retain or --data, and a model folder here."
    return "Give the folder that holds config.json and the safetensors weights."


def _names(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.is_dir()] if folder.is_dir() else []


def is_adapter_folder(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_base(folder: Path) -> str:
    """The base model an adapter folder names; a relative path is meant from the adapter's folder."""
    name = json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    beside = folder / name if name else None
    return str(beside.resolve()) if beside is not None and beside.is_dir() else name


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_adapter(
    loaded: Loaded, rank: int, *, alpha: int | None = None, targets: tuple[str, ...] = (), seed: int = 0
) -> Loaded:
    """Put a new LoRA adapter of `rank` r on the model: W + (alpha/r)·B·A, B starting at 0, the base frozen.

    Default alpha: 2r; default `targets`: every linear layer but the output layer. Raises ModelError on a model that
    has an adapter already, or where a target's name fits no layer.
    """
    from peft import LoraConfig, get_peft_model

    if loaded.is_adapter:
        raise ModelError(f"{loaded.folder} is an adapter already; it is trained as it is. Leave --lora out.")
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        target_modules=list(targets) if targets else "all-linear",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(loaded.folder.resolve()) if loaded.folder.is_dir() else str(loaded.folder),
    )
    try:
        with _without_noise():
            model = get_peft_model(loaded.model, config)
    except ValueError as error:
        raise ModelError(f"No LoRA adapter could be added to {loaded.folder}: {error}") from error
    model.eval()
    return replace(loaded, model=model)


def save_tokenizer(source: Path, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the tokenizer: the source folder's own files where there are any, so that not a byte changes."""
    names = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat_template", "generation_config")
    files = (
        [file for file in source.glob("*") if file.is_file() and file.name.startswith(names)] if source.is_dir() else []
    )
    if any(file.name.startswith("tokenizer") for file in files):
        for file in files:
            shutil.copyfile(file, out / file.name)
    else:
        tokenizer.save_pretrained(out)


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens, the model only {rows}. They do not belong together."
        )


def _load_model(folder: Path, dtype: Dtype, trust: bool) -> PreTrainedModel:
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)]
        found = f"only {pickles[0]}, whose loading could run code" if pickles else "no weights"
        raise ModelError(f"{folder} holds no .safetensors file ({found}). Convert the weights to safetensors.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(f"{folder} is quantized: its weights cannot be edited. Give the unquantized model.")
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"The model {folder} could not be loaded: {_first_line(error)}") from error


def _load_tokenizer(folder: Path, trust: bool) -> PreTrainedTokenizerBase:
    try:
        found: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        return found
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The tokenizer in {folder} could not be loaded: {_first_line(error)}") from error


def _load_adapter(folder: Path, dtype: Dtype, trust: bool) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} holds {ADAPTER_CONFIG} but no adapter_model.safetensors.")
    base = resolve(adapter_base(folder))
    model = _load_model(base, dtype, trust)
    with _without_noise():
        model = PeftModel.from_pretrained(model, folder, is_trainable=True, use_safetensors=True)
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return model, _load_tokenizer(folder if has_tokenizer else base, trust)


@contextmanager
def _without_noise() -> Iterator[None]:
    """PEFT asks transformers for a property by its old name: nothing a person could do about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
