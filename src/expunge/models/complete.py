"""Whether a folder's tensors are exactly those its model needs; if not, which."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import logging as transformers_logging

from expunge.errors import ModelError
from expunge.models.checkpoint import DTYPES, Stored
from expunge.models.naming import adapter_state, adapter_tensors, stored_names
from expunge.reading import foreign, read_object

# Tensors that older versions of transformers stored and that hold no weights: rotary frequencies and causal masks.
BUFFERS = re.compile(r"(^|\.)((original_)?inv_freq|masked_bias|position_ids|attn\.bias|attention\.bias)$")
FOREIGN = ("_orig_mod.", "module.", "_forward_module.", "_fsdp_wrapped_module.")
NAMED = 5  # tensors that a message names


def check_dtypes(folder: Path, held: Mapping[str, Stored]) -> None:
    """Refuse weights in fp8, packed bytes and other whole numbers, whatever the configuration says."""
    for name, item in held.items():
        known = item.dtype in DTYPES and not item.dtype.startswith("F8")
        whole = known and not DTYPES[item.dtype].is_floating_point
        if not known or (whole and name.endswith("weight") and len(item.shape) > 1):
            raise ModelError(
                f"{name} in {item.file} is stored as {item.dtype}: {folder} is quantized, and quantized weights cannot be "
                "edited. Give the model in bf16, fp16 or fp32."
            )


def check_model(
    model: Any, info: Mapping[str, Any], held: Mapping[str, Stored], folder: Path, *, composite: bool
) -> None:
    """Raise ModelError unless each of the model's tensors came from the folder, and it holds no others.

    info: transformers' loading report. composite: the model is a part of the folder's, whose
    other parts (a vision tower) are left as they are when the folder is written again.
    """
    unexpected = set(info["unexpected_keys"])
    _refuse_wrapped(held, folder)
    check_nothing_random(info, folder, type(model).__name__)
    named = stored_names(model, model.state_dict(), held) if held else None
    others = {name for name in unexpected if not BUFFERS.search(name)}
    if composite and held:
        others = _inside(others, held if named is None else named)
    if others:
        raise ModelError(
            f"{folder} holds {_names(others)}, which {type(model).__name__} does not know and would ignore. The weights "
            "and config.json do not belong together, or the folder is not a causal language model's."
        )
    if held and named is None and len(held) > len(stored_again(model)):
        raise ModelError(
            f"{folder} holds more than {type(model).__name__} does, and the rest could not be kept in what is written. "
            "Give a folder of the language model alone."
        )


def check_nothing_random(info: Mapping[str, Any], source: Path, kind: str) -> None:
    """Raise ModelError where transformers' loading report names a tensor that it had to make at random."""
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if missing:
        raise ModelError(
            f"{source} lacks {_names(missing)}, which {kind} needs; they would be random, other ones "
            "each time. Get the whole folder, or save the model again with its output layer." + _instead(unexpected)
        )
    if info["mismatched_keys"]:
        name, theirs, ours = min(info["mismatched_keys"], key=lambda item: item[0])
        raise ModelError(
            f"{source} stores {name} with shape {tuple(theirs)}, and its config.json asks for {tuple(ours)} (tensors that "
            f"do not fit: {len(info['mismatched_keys'])}). The weights and the configuration do not belong together."
        )


def check_folder(folder: Path, held: Mapping[str, Stored]) -> None:
    """Raise ModelError unless `folder` stores every tensor of the model its config.json names.

    The model is built on the meta device, so no weight is read or held. A folder without a configuration, or of a class
    that transformers does not have, is a set of tensors, of which none can be missed.
    """
    file = folder / "config.json"
    named = read_object(file, ModelError).get("architectures") if file.is_file() else None
    kind = getattr(transformers, str(named[0]), None) if isinstance(named, list) and named else None
    if kind is None:
        return
    _refuse_wrapped(held, folder)
    with quiet(), foreign(folder, what="could not be loaded"):
        _, info = kind.from_pretrained(
            folder, device_map={"": "meta"}, output_loading_info=True, use_safetensors=True, attn_implementation="eager"
        )
    check_nothing_random(info, folder, kind.__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers prints a report of tensors that do not fit; they are in our error instead."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def stored_again(model: Any) -> set[str]:
    """The names of the model's distinct tensors."""
    places = {(tensor.data_ptr(), tuple(tensor.shape)): name for name, tensor in model.state_dict().items()}
    return set(places.values())


def _refuse_wrapped(held: Mapping[str, Stored], folder: Path) -> None:
    for prefix in FOREIGN:
        wrapped = next((name for name in held if prefix in f".{name}"), None)
        if wrapped is not None and f".{wrapped}".startswith(("." + prefix, "." + "model." + prefix)):
            raise ModelError(
                f"{folder} stores {wrapped}: the model was saved from inside a wrapper ({prefix[:-1]}). Save the model "
                f"that it wraps, or take {prefix!r} out of the names."
            )


def _inside(others: Iterable[str], named: Iterable[str]) -> set[str]:
    """Those that are in a part of the folder the model covers: a further layer, say."""
    covered = {_part(name) for name in named}
    return {name for name in others if _part(name) in covered}


def _part(name: str) -> str:
    return ".".join(name.split(".")[:2])


def differing_head(model: Any) -> bool:
    """Whether the configuration ties the output layer to the embeddings and the weights say otherwise."""
    head = model.get_output_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    return bool(tied) and head is not None and head.weight is not model.get_input_embeddings().weight


def check_adapter(model: Any, held: Mapping[str, Stored], folder: Path, base: Path) -> None:
    """Raise ModelError unless the adapter's tensors are exactly those its configuration puts on the base."""
    expected = adapter_state(model, embeddings=False)
    missing = {name for name in expected if name not in held}
    if missing:
        raise ModelError(
            f"{folder} lacks {_names(missing)}, which its adapter_config.json puts on {base}; at random they would give "
            "other numbers each time. Get the whole adapter, or the base that it was trained on."
        )
    if adapter_tensors(model, held) is None:
        extra = set(held) - set(adapter_state(model, embeddings=True))
        raise ModelError(
            f"{folder} holds {_names(extra)}, for which {base} has no place. Give the base that the adapter was trained on."
        )


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + more


def _instead(unexpected: Iterable[str]) -> str:
    others = sorted(unexpected)
    return f" It holds {_names(others)} instead." if others else ""
