"""How deep the forgetting goes: the Unlearning Depth Score, by putting one model's inner states into another.

Lee et al. 2026, "Measuring the Depth of LLM Unlearning via Activation Patching" (arXiv 2605.24614). An unlearned model
may only have learned not to say what it still holds inside. So the original model is run on each forgotten answer with
the states after layer l, at the places that predict the answer, replaced by a source model's. What the answer then
loses in log-probability is the gap

    Δ_l = (1/T) Σ_t [log p(y_t) − log p(y_t | states of layer l replaced)]

With Δ¹ the gap of the retrained model as source and Δ² that of the unlearned one, over the layers where Δ¹ > τ = .05,

    UDS = Σ_l Δ¹_l · clip(Δ²_l / Δ¹_l, 0, 1) / Σ_l Δ¹_l

0: the source's states tell the original all it needs, nothing is gone. 1: they tell it as little as the retrained
model's do. The paper patches the tokens of annotated entities; here, where nobody annotated any, T are all tokens of the
answer without the end token. Examples with no layer above τ, which the retrained model does not lack, have no score.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Batch, Encoded, collate
from expunge.errors import ModelError
from expunge.evaluation.lens import Decoder, decoder_of, watching
from expunge.evaluation.records import Progress, evaluating, passes
from expunge.evaluation.statistics import Interval, interval_of_mean
from expunge.models import Loaded, answers

THRESHOLD = 0.05  # τ of the paper; its rankings hold from 0 to .1


@dataclass(frozen=True, eq=False)
class Gaps:
    """What n answers lose in the original model, by layer: [n, L], in nats per token.

    patched: with the layer's states replaced by the source's. lens: with the layer read out through the original's last
    norm and output layer, the source's states against the original's.
    """

    patched: np.ndarray
    lens: np.ndarray


@dataclass(frozen=True, eq=False)
class Depth:
    """scores, lens_scores: [n] UDS of each example and its logit-lens counterpart, NaN where it has none.

    retrained, unlearned: [L] the mean gaps Δ¹ and Δ², from the first layer to the last.
    """

    scores: np.ndarray
    lens_scores: np.ndarray
    retrained: np.ndarray
    unlearned: np.ndarray

    @property
    def metrics(self) -> dict[str, tuple[float, Interval]]:
        """`uds` and `lens_depth`, where any example has one, with 95 % bootstrap intervals."""
        found = {}
        for name, scores in (("uds", self.scores), ("lens_depth", self.lens_scores)):
            defined = scores[~np.isnan(scores)]
            if defined.size:
                found[name] = float(defined.mean()), interval_of_mean(defined)
        return found

    def to_dict(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "threshold": THRESHOLD,
            "examples": len(self.scores),
            "without": int(np.isnan(self.scores).sum()),
            "retrained": [float(gap) for gap in self.retrained],
            "unlearned": [float(gap) for gap in self.unlearned],
        }


def depth(retrained: Gaps, unlearned: Gaps, threshold: float = THRESHOLD) -> Depth:
    """The scores from the gaps of both sources on the same examples."""
    return Depth(
        depth_scores(retrained.patched, unlearned.patched, threshold),
        depth_scores(retrained.lens, unlearned.lens, threshold),
        retrained.patched.mean(axis=0),
        unlearned.patched.mean(axis=0),
    )


def depth_scores(retrained: np.ndarray, unlearned: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Σ_l Δ¹ clip(Δ²/Δ¹, 0, 1) / Σ_l Δ¹ over the layers with Δ¹ > threshold: [n], NaN where there is none.

    retrained, unlearned: Δ¹ and Δ², [n, L].
    """
    weight = np.where(retrained > threshold, retrained, 0.0)
    kept = np.clip(unlearned, 0.0, weight)  # Δ¹ · clip(Δ²/Δ¹, 0, 1)
    total = weight.sum(axis=1)
    return np.divide(kept.sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)


def gaps(
    original: Loaded,
    source: Loaded,
    items: Sequence[Encoded],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Gaps:
    """Patch `source`'s states into `original` on each of `items`, layer by layer.

    Costs one pass of the source and, of the original, one pass and one from each layer on: about 1 + L/2 passes.
    Batch size, padding and order change nothing beyond rounding. Raises ModelError where the two models differ in kind,
    size or vocabulary, or their layers cannot be found or replaced.
    """
    with evaluating(original.model), evaluating(source.model), torch.inference_mode():
        target, giver = _decoders(original, source, items)
        found = np.zeros((2, len(items), len(target.blocks)))
        batches = passes(original, items, batch_size)
        for number, batch in enumerate(batches):
            some = [items[index] for index in batch]
            device = next(original.model.parameters()).device
            found[:, batch] = _of_batch(original, source, target, giver, collate(some, original.pad).to(device), some)
            if progress is not None:
                progress("depth", number + 1, len(batches))
    return Gaps(*found)


def _decoders(original: Loaded, source: Loaded, items: Sequence[Encoded]) -> tuple[Decoder, Decoder]:
    target, giver = decoder_of(original, items), decoder_of(source, items)
    if target is None or giver is None:
        raise ModelError(f"{(source if target else original).folder}: its layers could not be told apart.")
    same = len(target.blocks) == len(giver.blocks) and target.head.weight.shape[1] == giver.head.weight.shape[1]  # pyrefly: ignore
    if not same or original.tokenizer.get_vocab() != source.tokenizer.get_vocab():
        raise ModelError(f"{source.folder} and {original.folder} differ in layers, width or vocabulary.")
    return target, giver


def _of_batch(
    original: Loaded, source: Loaded, target: Decoder, giver: Decoder, batch: Batch, items: Sequence[Encoded]
) -> np.ndarray:
    """[2, B, L] the gaps by patching and by the lens."""
    places = torch.arange(len(batch.labels), device=batch.labels.device)
    layers = range(1, len(target.blocks) + 1)
    with watching(giver, layers, batch.predicts, places) as given:
        answers(source.model, batch)
    given = {layer: states.to(batch.ids.device) for layer, states in given.items()}
    with _recording(target.blocks) as outputs, watching(target, layers, batch.predicts, places) as own:
        whole = -answers(original.model, batch).token_nll
    mean = _mean_of_answers(items, batch)
    found = np.zeros((2, len(items), len(layers)))
    for layer in layers:
        with _replaying(target.blocks, outputs, layer, batch.predicts, given[layer]):
            patched = -answers(original.model, batch).token_nll
        if layer == 1:
            _check(original, target, outputs, batch, own[1], whole)
        read, said = (target.log_probabilities(states[layer], batch.labels, places)[0] for states in (own, given))
        found[0, :, layer - 1], found[1, :, layer - 1] = mean(whole - patched), mean(read - said)
    return found


def _mean_of_answers(items: Sequence[Encoded], batch: Batch) -> Any:
    """A function from one value per label [N] to the mean over each answer's own tokens: [B]."""
    own = np.concatenate([np.arange(len(item.labels)) < max(1, len(item.labels) - item.ended) for item in items])
    rows = batch.row.cpu().numpy()
    counts = np.bincount(rows, own, minlength=len(items))
    return lambda values: np.bincount(rows, values.double().cpu().numpy() * own, minlength=len(items)) / counts


@contextmanager
def _recording(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Collect what each block gives, as it gives it."""
    outputs: list[Any] = []
    handles = [block.register_forward_hook(lambda _, __, output: outputs.append(output)) for block in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaying(
    blocks: Sequence[nn.Module], outputs: Sequence[Any], layer: int, where: Tensor, states: Tensor
) -> Iterator[None]:
    """Blocks 1 … `layer` give again what they gave, the last of them with `states` [N, d] at the places `where`."""
    before = [vars(block).get("forward") for block in blocks[:layer]]
    output = outputs[layer - 1]
    hidden = (output[0] if isinstance(output, tuple) else output).clone()  # [B, T, d]
    hidden[:, -where.shape[1] :][where] = states.to(hidden)
    changed = (hidden, *output[1:]) if isinstance(output, tuple) else hidden
    try:
        for block, given in zip(blocks[:layer], [*outputs[: layer - 1], changed], strict=True):
            block.forward = lambda *_, given=given, **__: given
        yield
    finally:
        for block, forward in zip(blocks[:layer], before, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


def _check(
    original: Loaded, target: Decoder, outputs: Sequence[Any], batch: Batch, states: Tensor, whole: Tensor
) -> None:
    """The original's own states in their own place must change nothing, or the model is not a chain of its blocks."""
    with _replaying(target.blocks, outputs, 1, batch.predicts, states):
        again = -answers(original.model, batch).token_nll
    if not (again - whole).norm() <= 1e-3 * whole.norm() + 1e-6:
        raise ModelError(f"{original.folder}: its layers do more than hand states on, so none can be replaced.")
