"""The depth score against patching one example, one layer, one hook at a time."""

import copy

import numpy as np
import pytest
import torch

from expunge.data import Encoder, collate
from expunge.errors import ModelError
from expunge.evaluation.depth import Gaps, depth, depth_scores, gaps
from expunge.models import Loaded, answers, new_adapter
from tests.conftest import build_model


def model(tiny: Loaded, seed: int, layers: int = 3) -> Loaded:
    return Loaded(build_model(len(tiny.tokenizer), seed=seed, layers=layers).eval(), tiny.tokenizer, tiny.folder)


def near(loaded: Loaded, size: float, seed: int = 0) -> Loaded:
    """The same model with a little noise in every weight."""
    other = copy.deepcopy(loaded.model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return Loaded(other, loaded.tokenizer, loaded.folder)


def blocks(loaded: Loaded):
    inner = getattr(loaded.model, "get_base_model", lambda: loaded.model)()
    return inner.transformer.h if hasattr(inner, "transformer") else inner.model.layers


def hidden(output):
    return output[0] if isinstance(output, tuple) else output


def patched_gap(original: Loaded, source: Loaded, item, layer: int) -> float:
    """Mean loss of log p over the answer's own tokens, with one layer's output replaced by a plain forward hook."""
    ids = torch.tensor([item.ids])
    places = range(item.start - 1, len(item.ids) - 1)
    kept = {}

    def keep(_, __, output) -> None:
        kept["states"] = hidden(output).clone()

    def replace(_, __, output):
        states = hidden(output).clone()
        states[:, list(places)] = kept["states"][:, list(places)]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def said() -> torch.Tensor:
        logp = original.model(ids).logits[0].double().log_softmax(-1)
        return torch.stack([logp[place, item.ids[place + 1]] for place in places])

    with torch.no_grad():
        handle = blocks(source)[layer].register_forward_hook(keep)
        source.model(ids)
        handle.remove()
        before = said()
        handle = blocks(original)[layer].register_forward_hook(replace)
        after = said()
        handle.remove()
    own = slice(0, len(places) - item.ended)
    return float((before - after)[own].mean())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "adapted", "sliding"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_gaps_equal_single_hooks(kind: str, batch_size: int, tiny: Loaded, examples, request) -> None:
    original = model(tiny, 1) if kind == "llama" else request.getfixturevalue(kind)
    source = near(original, 0.05)
    items = Encoder(tiny.tokenizer).examples(examples)
    found = gaps(original, source, items, batch_size=batch_size).patched
    expected = [[patched_gap(original, source, item, k) for k in range(len(blocks(original)))] for item in items]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    assert np.abs(found).min() > 1e-4
    assert "forward" not in vars(blocks(original)[0])


def test_the_last_layer_is_the_source_read_by_the_originals_output(tiny: Loaded, examples) -> None:
    """There nothing is left to recompute: patching and the lens say the same."""
    original = model(tiny, 1)
    found = gaps(original, near(original, 0.1), Encoder(tiny.tokenizer).examples(examples))
    np.testing.assert_allclose(found.patched[:, -1], found.lens[:, -1], rtol=1e-4, atol=1e-5)
    assert np.abs(found.patched[:, 0] - found.lens[:, 0]).min() > 1e-3


def test_an_adapter_is_patched_into_its_base(tiny: Loaded, examples) -> None:
    original, base = tiny, Loaded(copy.deepcopy(tiny.model), tiny.tokenizer, tiny.folder)
    adapted = new_adapter(base, 2)
    items = Encoder(tiny.tokenizer).examples(examples)
    np.testing.assert_allclose(gaps(original, adapted, items).patched, 0, atol=1e-6)  # B = 0: nothing changed
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    expected = [[patched_gap(original, adapted, item, k) for k in range(2)] for item in items]
    np.testing.assert_allclose(gaps(original, adapted, items).patched, expected, rtol=2e-4, atol=2e-5)


def test_the_ends_of_the_scale(tiny: Loaded, examples) -> None:
    original, items = model(tiny, 1), Encoder(tiny.tokenizer).examples(examples)
    retrained = Loaded(copy.deepcopy(original.model), tiny.tokenizer, tiny.folder)
    optimizer = torch.optim.Adam(original.model.parameters(), lr=1e-2)
    for _ in range(30):  # the original learns the answers
        optimizer.zero_grad()
        answers(original.model, collate(items)).mean_nll.mean().backward()
        optimizer.step()
    first = gaps(original, retrained, items)
    half = near(original, 0.02)
    scores = {
        name: depth(first, gaps(original, source, items)).metrics["uds"][0]
        for name, source in (("original", original), ("retrained", retrained), ("half", half))
    }
    assert scores["original"] == pytest.approx(0, abs=1e-6)
    assert scores["retrained"] == 1
    assert 0.001 < scores["half"] < 0.9
    again = gaps(original, retrained, items[::-1], batch_size=2)
    np.testing.assert_allclose(again.patched[::-1], first.patched, rtol=1e-4, atol=1e-5)


def test_the_score_by_hand() -> None:
    retrained = np.array([[0.04, 0.1, 0.5], [0.0, 0.05, -1.0], [1.0, 1.0, 2.0]])
    unlearned = np.array([[9.0, 0.05, -0.5], [1.0, 1.0, 1.0], [3.0, 0.5, 0.5]])
    scores = depth_scores(retrained, unlearned)
    np.testing.assert_allclose(scores, [0.05 / 0.6, np.nan, (1 + 0.5 + 0.5) / 4])
    found = depth(Gaps(retrained, retrained), Gaps(unlearned, unlearned))
    value, (low, high) = found.metrics["uds"]
    assert value == pytest.approx(np.mean([0.05 / 0.6, 0.5]))
    assert low <= value <= high
    told = found.to_dict()
    assert (told["examples"], told["without"]) == (3, 1)
    np.testing.assert_allclose(told["retrained"], retrained.mean(0))
    nothing = Gaps(np.zeros((2, 3)), np.zeros((2, 3)))
    assert depth(nothing, nothing).metrics == {}


def test_models_that_do_not_belong_together_are_refused(tiny: Loaded, examples) -> None:
    items = Encoder(tiny.tokenizer).examples(examples)
    with pytest.raises(ModelError, match="differ in layers"):
        gaps(model(tiny, 1), model(tiny, 1, layers=2), items)
    changed = model(tiny, 1)
    changed.model.model.register_forward_hook(lambda _, __, out: out.__class__(last_hidden_state=out[0] * 2))
    with pytest.raises(ModelError, match="could not be told apart"):
        gaps(changed, changed, items)
