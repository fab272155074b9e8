"""The logit lens against transformers' own hidden states, in trees and alone, for models of several kinds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.data import Encoded, Encoder
from expunge.errors import ConfigurationError
from expunge.evaluation import evaluate, request_suite, score
from expunge.evaluation import lens as module
from expunge.evaluation import records as scoring
from expunge.evaluation.lens import Lens, chosen_layers, decoder_of, lens
from expunge.evaluation.metrics.memorization import lens_profile, logit_lens
from expunge.models import Loaded, load
from expunge.request import Request
from tests.conftest import build_model


def deep(tiny: Loaded, layers: int = 4, *, tied: bool = True) -> Loaded:
    model = build_model(len(tiny.tokenizer), seed=7, layers=layers, tied=tied).eval()
    return Loaded(model, tiny.tokenizer, tiny.folder)


def reading(loaded: Loaded, items: list[Encoded], layers=None) -> Lens:
    found = lens(loaded, items, layers)
    assert isinstance(found, Lens), found
    return found


def oracle(loaded: Loaded, item: Encoded, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """log p and arg-max of each label from hidden_states[layer], the model's own list, in float64."""
    inner = getattr(loaded.model, "get_base_model", lambda: loaded.model)()
    norm = inner.transformer.ln_f if hasattr(inner, "transformer") else inner.model.norm
    with torch.no_grad():
        states = loaded.model(torch.tensor([item.ids]), output_hidden_states=True).hidden_states[layer]
        logits = inner.lm_head(norm(states))[0, item.start - 1 : -1].double()
    labels = torch.tensor(item.labels)
    return logits.log_softmax(-1)[range(len(labels)), labels].numpy(), (logits.argmax(-1) == labels).numpy()


def branching(loaded: Loaded, examples) -> list[Encoded]:
    encoder = Encoder(loaded.tokenizer)
    return [encoder.pair(one, one.prompt, other.response) for one in examples for other in examples]


@pytest.mark.parametrize("kind", ["deep", "untied", "gpt2", "adapted", "sliding", "stories260K"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_it_reads_what_the_hidden_states_say(kind: str, batch_size: int, tiny: Loaded, examples, request) -> None:
    if kind in ("deep", "untied"):
        loaded = deep(tiny, tied=kind == "deep")
    elif kind == "stories260K":
        loaded = load(request.getfixturevalue("shared_data") / kind, device="cpu")
    else:
        loaded = request.getfixturevalue(kind)
    items = branching(loaded, examples)
    wanted = items[::3]
    reader = reading(loaded, wanted)
    plain = score(loaded, items, batch_size=batch_size)
    for number, (record, other, item) in enumerate(
        zip(score(loaded, items, batch_size=batch_size, lens=reader), plain, items, strict=True)
    ):
        np.testing.assert_array_equal(record.logprob, other.logprob)
        if number % 3:
            assert not len(record.lens)
            continue
        assert record.lens.shape == (len(reader.layers), len(item.labels))
        for row, layer in enumerate(reader.layers):
            logprob, correct = oracle(loaded, item, layer)
            np.testing.assert_allclose(record.lens[row], logprob, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(record.lens_correct[row], correct)


def test_trees_were_read_too(tiny: Loaded, examples, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, kinds = deep(tiny), []
    items = branching(loaded, examples)
    for name in ("_of_trees", "_of_sequences"):
        run = getattr(scoring, name)
        monkeypatch.setattr(scoring, name, lambda *a, run=run, name=name: kinds.append((name, len(a))) or run(*a))
    score(loaded, items, lens=reading(loaded, items))
    assert ("_of_trees", 4) in kinds


def test_neither_chunks_nor_padding_side_change_it(tiny: Loaded, examples, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = deep(tiny)
    items = branching(loaded, examples)[:6]
    reader = reading(loaded, items, [1, 3])
    one = score(loaded, items, lens=reader)
    monkeypatch.setattr(module, "CHUNK_BYTES", {"cpu": 4 * 3 * len(tiny.tokenizer), "gpu": 0})
    other = score(loaded, items[::-1], lens=reader, side="left", batch_size=2)[::-1]
    for record, again in zip(one, other, strict=True):
        np.testing.assert_allclose(record.lens, again.lens, rtol=1e-5, atol=1e-6)
        later = record.after(2)
        np.testing.assert_array_equal(later.lens, record.lens[:, 2:])


def test_only_a_chunk_of_the_vocabulary_is_kept(tiny: Loaded, examples, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, seen = deep(tiny), []
    items = branching(loaded, examples)
    reader = reading(loaded, items)
    monkeypatch.setattr(module, "CHUNK_BYTES", {"cpu": 4 * 5 * len(tiny.tokenizer), "gpu": 0})
    whole = module.Decoder.logits
    monkeypatch.setattr(module.Decoder, "logits", lambda self, states: seen.append(len(states)) or whole(self, states))
    score(loaded, items, lens=reader)
    assert max(seen) == 5


def test_the_chosen_layers() -> None:
    assert chosen_layers(1) == ()
    assert chosen_layers(2) == (1,)
    assert chosen_layers(4) == (2, 3)
    assert chosen_layers(30) == (15, 20, 24, 29)
    assert chosen_layers(5, most=1) == (2,)


def test_a_model_that_does_not_fit_is_said_and_not_read(tiny: Loaded, small_request: Request) -> None:
    """Something stands between its last norm and the output layer."""
    suite = request_suite(Request(small_request.forget))
    loaded = deep(tiny)
    loaded.model.model.register_forward_hook(lambda _, __, out: out.__class__(last_hidden_state=out[0] * 2))
    items = Encoder(loaded.tokenizer).examples(small_request.forget)
    assert decoder_of(loaded, items) is None
    found = evaluate(loaded, suite, generate=False)
    assert "forget.logit_lens" not in found.metrics
    assert any("LlamaForCausalLM's last norm" in note for note in found.notes)
    assert found.layers == {}


def test_in_an_evaluation(tiny: Loaded, small_request: Request) -> None:
    loaded = deep(tiny)
    suite = request_suite(small_request)
    found = evaluate(loaded, suite, generate=False)
    items = Encoder(loaded.tokenizer).examples(small_request.forget)
    expected = [max(np.exp(oracle(loaded, item, layer)[0].mean()) for layer in (2, 3)) for item in items]
    assert found.metrics["forget.logit_lens"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert "retain.logit_lens" not in found.metrics
    told = found.layers["lens"]
    assert told["layers"] == [2, 3, 4]
    by_layer = [np.mean([np.exp(oracle(loaded, item, layer)[0].mean()) for item in items]) for layer in (2, 3)]
    np.testing.assert_allclose(told["probability"][:2], by_layer, rtol=1e-5)
    assert told["probability"][2] == found.metrics["forget.probability"]
    none = evaluate(loaded, suite, generate=False, lens_layers=())
    assert "forget.logit_lens" not in none.metrics
    assert not any("logit_lens" in note for note in none.notes)
    with pytest.raises(ConfigurationError, match="layer 4: the inner layers are 1 to 3"):
        evaluate(loaded, suite, generate=False, lens_layers=[1, 4])


def test_the_measures_by_hand() -> None:
    record = scoring.Record(
        np.log([0.5, 0.5]), np.ones(2, bool), np.zeros(2), np.ones(2), True,
        np.log([[0.1, 0.4], [0.25, 0.25]]), np.array([[True, False], [True, True]]),
    )  # fmt: skip
    bare = scoring.Record(np.log([0.5]), np.ones(1, bool), np.zeros(1), np.ones(1), True)
    np.testing.assert_allclose(logit_lens([record, bare]), [0.25, np.nan])
    probability, correct = lens_profile([record, bare])
    np.testing.assert_allclose(probability, [0.2, 0.25])
    np.testing.assert_allclose(correct, [0.5, 1])


def test_real_model_with_one_layer_list(shared_data: Path) -> None:
    loaded = load(shared_data / "stories260K", device="cpu")
    items = [loaded.encoder().whole_text("Once upon a time there was a cat.")]
    encoded = [Encoded((*begin, *rest), 1) for begin, rest in items]
    decoder = decoder_of(loaded, encoded)
    assert decoder is not None
    assert len(decoder.blocks) == 5
