"""Load and save models: safetensors only, no remote code, errors a person can act on."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from expunge.data import Encoder, Wording
from expunge.errors import ConfigurationError, ModelError
from expunge.models import complete
from expunge.models.adapter_config import check_patterns, read_adapter_config
from expunge.models.causal import check_causal
from expunge.models.checkpoint import ADAPTER_WEIGHTS, stored
from expunge.models.finite import check_weights
from expunge.models.folders import ADAPTER_CONFIG, base_folder, is_adapter_folder, resolve
from expunge.models.settings_files import check_files, check_sizes
from expunge.models.stamp import Stamp
from expunge.reading import foreign

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
KERNELS = ("eager", "sdpa")  # attention that every machine computes
# What a configuration may ask for beside the logits; expunge asks for what it needs itself.
PLAIN = {
    "return_dict": True, "output_attentions": False, "output_hidden_states": False, "output_router_logits": False,
}  # fmt: skip
PAD_OFFSET = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "roberta-prelayernorm", "xmod")
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
        return positions(inner.config)

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
    note: Callable[[str], None] | None = None,
) -> Loaded:
    """Load a model folder: a causal LM, a PEFT adapter, or an expunge run (its `model`).

    A name of two parts that is no path here is looked up on the hub. Weights must be
    safetensors; `dtype` is that of the weights in memory ("auto": the checkpoint's).
    `note` receives what the user should know, such as an attention kernel that this
    machine lacks. Raises ModelError if the folder is missing, lacks a tensor that the
    model needs, holds one that it does not know, is not a causal LM, is quantized, or
    holds pickled weights only; ConfigurationError for a device that is not there.
    """
    folder, tell = resolve(folder), note or (lambda _: None)
    target = open_device(device)
    stamp = Stamp.of(folder, *([base_folder(folder)] if is_adapter_folder(folder) else []))
    if is_adapter_folder(folder):
        model, tokenizer = _load_adapter(folder, dtype, trust_remote_code, tell)
    else:
        model = _load_model(folder, dtype, trust_remote_code, tell)
        tokenizer = _load_tokenizer(folder, trust_remote_code)
    check_vocabulary(model, tokenizer, folder)
    model.eval()
    nn.Module.to(model, target)
    return Loaded(model, tokenizer, folder, stamp, wording)


def open_encoder(
    folder: Path | str, max_length: int = 512, *, trust_remote_code: bool = False, wording: Wording = Wording()
) -> Encoder:
    """The encoder of a model folder (as `Loaded.encoder`), without its weights. Raises ModelError as `load` does."""
    folder = resolve(folder)
    base = base_folder(folder) if is_adapter_folder(folder) else folder
    has_tokenizer = base == folder or (folder / "tokenizer_config.json").is_file()
    tokenizer = _load_tokenizer(folder if has_tokenizer else base, trust_remote_code)
    limit = positions(_load_config(base, trust_remote_code))
    return Encoder(tokenizer, min(max_length, limit or max_length), wording)


def positions(config: Any) -> int | None:
    """How many tokens a model of this configuration can look at; None where it sets no limit.

    MPT calls the number max_seq_len. RoBERTa and its kind count from their padding token
    on, so that many fewer fit. XLNet's -1 is no limit.
    """
    text = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions")
    numbers = (getattr(text, name, None) for name in names)
    limit = next((number for number in numbers if isinstance(number, int) and number > 0), None)
    if limit is not None and text.model_type in PAD_OFFSET:
        limit -= (text.pad_token_id or 0) + 1
    return limit


def open_device(device: str | torch.device | None) -> torch.device:
    """The device by its name, by default a GPU if there is one. Raises ConfigurationError if it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with foreign(f"--device {device}", ConfigurationError, what="cannot be used"):
        target = torch.device(device)
        torch.empty(0, device=target)
    return target


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


def _load_config(folder: Path, trust: bool) -> Any:
    """The configuration, as the causal LM is built from it. Raises ModelError for a model with an encoder beside it."""
    if folder.is_dir():
        check_files(folder)
    with foreign(_source(folder, "config.json"), what="could not be loaded"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, **PLAIN)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{folder} is an encoder-decoder model ({config.model_type}): without its encoder its decoder is another "
            "model. Give a causal language model."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{folder} is quantized: its weights cannot be edited. Give the unquantized model.")
    return config


def _source(folder: Path, file: str) -> str:
    """What could not be read: a file of the folder, or a name on the hub that is no folder here."""
    return str(folder / file) if folder.is_dir() else f"{folder} is no folder here, and as a name on the hub it"


def _load_model(folder: Path, dtype: Dtype, trust: bool, tell: Callable[[str], None]) -> PreTrainedModel:
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)]
        found = f"only {pickles[0]}, whose loading could run code" if pickles else "no weights"
        raise ModelError(f"{folder} holds no .safetensors file ({found}). Convert the weights to safetensors.")
    config = _load_config(folder, trust)
    held = stored(folder) if folder.is_dir() else {}
    if folder.is_dir():
        check_sizes(folder, held)
    complete.check_dtypes(folder, held)
    kernel = _plain_attention(config)
    with complete.quiet(), foreign(folder, what="could not be loaded as a causal language model"):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below, all of them
        )
    complete.check_model(model, info, held, folder, composite=type(model.config) is not type(config))
    check_weights(model, folder)
    check_causal(model, folder, positions=positions(config))
    if kernel:
        tell(f"{folder} asks for {kernel} attention; {model.config._attn_implementation} computes the same here.")
    if complete.differing_head(model):
        tell(
            f"{folder}: config.json ties the output layer to the embeddings, but the weights hold a differing output "
            "layer, which is used and kept. Set tie_word_embeddings to false, so that other programs use it too."
        )
    return model


def _plain_attention(config: Any) -> str | None:
    """Leave the choice of the attention kernel to transformers; the one the configuration asked for, if it is special."""
    parts = {id(part): part for part in (config, config.get_text_config())}.values()
    kernels = [part._attn_implementation for part in parts]
    special = next((kernel for kernel in kernels if kernel is not None and kernel not in KERNELS), None)
    if special is not None:
        for part in parts:
            part._attn_implementation = None
    return special


def _load_tokenizer(folder: Path, trust: bool) -> PreTrainedTokenizerBase:
    with foreign(_source(folder, "tokenizer"), what="could not be loaded"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        tokenizer("?")  # shows settings that do not fit
    return tokenizer


def _load_adapter(
    folder: Path, dtype: Dtype, trust: bool, tell: Callable[[str], None]
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    from peft import PeftConfig, PeftModel

    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} holds {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}.")
    settings = read_adapter_config(folder)
    held = stored(folder)
    base = base_folder(folder)
    model = _load_model(base, dtype, trust, tell)
    check_patterns(settings, [name for name, _ in model.named_modules()], folder / ADAPTER_CONFIG)
    with without_noise(), foreign(folder, what=f"could not be put on its base model {base}"):
        # PEFT trains no prompt that was loaded; its embeddings are ordinary parameters all the same.
        prompt = PeftConfig.from_pretrained(str(folder)).is_prompt_learning
        model = PeftModel.from_pretrained(model, folder, is_trainable=not prompt, use_safetensors=True)
    if prompt:
        for name, param in model.named_parameters():
            param.requires_grad_(name.startswith("prompt_encoder."))
    complete.check_adapter(model, held, folder, base)
    check_weights(model, folder)
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return model, _load_tokenizer(folder if has_tokenizer else base, trust)


@contextmanager
def without_noise() -> Iterator[None]:
    """PEFT asks transformers for a property by its old name, and warns of keys that are checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        yield
