"""The streamed selection against a stable sort of everything."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.attribution import topk
from expunge.attribution.topk import top_k, top_k_rows
from expunge.errors import ConfigurationError, DivergedError
from expunge.models.mask import unpack

DENORMAL = float(np.float32(1e-45))
NUMBERS = st.one_of(
    st.sampled_from([0.0, DENORMAL, 2 * DENORMAL, 1.0, float(np.nextafter(np.float32(1), np.float32(2))), 2.0**127]),
    st.floats(0, 2.0**127, width=32),
)


def chosen(tensors: dict[str, torch.Tensor], k: int) -> list[bool]:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    bits = top_k(lambda name: tensors[name], shapes, k)
    return [value for name, shape in shapes.items() for value in unpack(bits[name], shape).flatten().tolist()]


def sorted_choice(tensors: dict[str, torch.Tensor], k: int) -> list[bool]:
    flat = np.concatenate([tensor.numpy().astype(np.float64).ravel() for tensor in tensors.values()])
    rank = np.argsort(np.argsort(-flat, kind="stable"), kind="stable")
    return (rank < k).tolist()


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.lists(NUMBERS, min_size=1, max_size=40), min_size=1, max_size=4), share=st.floats(0, 1))
def test_equals_a_stable_sort(parts, share) -> None:
    tensors = {str(index): torch.tensor(part, dtype=torch.float32) for index, part in enumerate(parts)}
    k = round(share * sum(map(len, parts)))
    assert chosen(tensors, k) == sorted_choice(tensors, k)


@pytest.mark.parametrize("k", [1, 7, 8, 9, 500, 999, 1000])
def test_pieces_and_tensors_make_no_difference(monkeypatch, k) -> None:
    draw = torch.Generator().manual_seed(k)
    values = (torch.rand(1000, generator=draw) * 20).round() / 7  # few different numbers: ties at every border
    whole = chosen({"a": values}, k)
    assert sum(whole) == k
    monkeypatch.setattr(topk, "CHUNK", 16)
    assert chosen({"a": values}, k) == whole
    tensors = {"b": values[:333].reshape(9, 37), "a": values[333:334].reshape(()), "c": values[334:]}
    assert chosen(tensors, k) == whole == sorted_choice(tensors, k)


def test_a_million_scores_of_a_model() -> None:
    draw = torch.Generator().manual_seed(0)
    values = (torch.randn(1_000_000, generator=draw) * torch.randn(1_000_000, generator=draw) * 1e-9).abs()
    for k in (1, 400_000, 950_000, 999_999):
        assert chosen({"a": values}, k) == sorted_choice({"a": values}, k)


def test_equal_scores_everywhere_keep_the_first() -> None:
    for value in (0.0, 2.5):
        assert chosen({"a": torch.full((5,), value), "b": torch.full((5,), value)}, 7) == [True] * 7 + [False] * 3


def test_none_and_more_than_there_are() -> None:
    assert chosen({"a": torch.ones(3)}, 0) == [False] * 3
    assert chosen({"a": torch.arange(3.0)}, 9) == [True] * 3


def test_other_layouts_and_dtypes() -> None:
    values = torch.tensor([[1.0, 5.0], [4.0, 2.0]]).T
    assert chosen({"a": values}, 2) == [False, True, True, False]
    assert chosen({"a": values.bfloat16()}, 2) == [False, True, True, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("nan"), -float("inf")])
def test_scores_that_are_not_finite_are_refused_by_name(bad) -> None:
    tensors = {"good": torch.ones(3), "layer.weight": torch.tensor([1.0, bad])}
    with pytest.raises(DivergedError, match=r"layer\.weight are not finite"):
        chosen(tensors, 2)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="have a sign"):
        chosen({"a": torch.tensor([1.0, -1.0])}, 1)
    with pytest.raises(ConfigurationError, match="a has 3 entries and got 2 scores"):
        top_k(lambda _: torch.ones(2), {"a": (3,)}, 1)


@pytest.mark.parametrize("k", [1, 3, 10, 19, 20])
def test_rows_equal_a_stable_sort_of_each(k) -> None:
    draw = torch.Generator().manual_seed(k)
    scores = (torch.rand(30, 20, generator=draw) * 12).round()
    scores[3] = 0
    expected = torch.zeros(30, 20, dtype=torch.bool)
    for row in range(30):
        expected[row, scores[row].argsort(descending=True, stable=True)[:k]] = True
    assert torch.equal(top_k_rows(scores, k), expected)
