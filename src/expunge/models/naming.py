"""The names under which a folder stores the tensors that a model holds.

transformers renames, splits and fuses tensors when it loads a checkpoint (a mixture's
experts, the text part of a vision-language model); its own reverse of that gives the
names and tensors of the checkpoint again, but for a prefix.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from expunge.models.checkpoint import Stored
from expunge.reading import foreign

Place = tuple[int, tuple[int, ...]]


def stored_names(model: Any, state: Mapping[str, Tensor], held: Mapping[str, Stored]) -> dict[str, Tensor] | None:
    """The tensors of `state` (the model's state_dict) under the names of `held`, the folder's tensors.

    A tied weight is there under each name the folder stores. None unless every tensor of
    the model has its place in the folder, with its shape.
    """
    named = _matched(state, held, _prefixes(state, held))
    if named is None:
        shared = {_place(tensor): tensor for tensor in reversed(list(state.values()))}  # tied names, one object
        with foreign(type(model).__name__, what="cannot be written under its checkpoint's names"):
            back = revert_weight_conversion(model, {name: shared[_place(tensor)] for name, tensor in state.items()})
        named = _matched(back, held, _prefixes(back, held))
    return named


def _matched(
    state: Mapping[str, Tensor], held: Mapping[str, Stored], prefixes: Iterator[tuple[str, str]]
) -> dict[str, Tensor] | None:
    places = {_place(tensor) for tensor in state.values()}
    for ours, theirs in prefixes:
        named = {}
        for name, tensor in state.items():
            full = theirs + name.removeprefix(ours) if name.startswith(ours) else name
            there = full if full in held else name
            if there in held and held[there].shape == tuple(tensor.shape):
                named[there] = tensor
        if {_place(tensor) for tensor in named.values()} == places:
            return named
    return None


def _prefixes(state: Mapping[str, Tensor], held: Mapping[str, Stored]) -> Iterator[tuple[str, str]]:
    """What to take off a name of `state`, and what to put there, to get one of `held`; nothing first.

    Found on the longest name: those whose end is the name (the file's has more), or the
    other way round (GPT-2 on the hub is stored without the causal LM's `transformer.`).
    """
    yield "", ""
    longest = max(state, key=lambda name: (name.count("."), len(name)), default="")
    for name in held:
        if name.endswith(f".{longest}"):
            yield "", name.removesuffix(longest)
        elif longest.endswith(f".{name}"):
            yield longest.removesuffix(name), ""


def _place(tensor: Tensor) -> Place:
    return tensor.data_ptr(), tuple(tensor.shape)


def adapter_tensors(model: Any, held: Mapping[str, Stored]) -> dict[str, Tensor] | None:
    """The adapter's tensors under the names `held` has, or None where it has others."""
    for embeddings in (False, True):
        state = adapter_state(model, embeddings=embeddings)
        if set(held) <= set(state):
            return {name: state[name] for name in held}
    return None


def adapter_state(model: Any, *, embeddings: bool) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names; embeddings: with the base's embedding layers."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, save_embedding_layers=embeddings)
