"""The mean gradient against closed forms and float64, and what it leaves as it was."""

import pytest
import torch
from torch import Tensor, nn

from expunge.data import Encoded, collate, packs
from expunge.errors import ConfigurationError, DivergedError
from expunge.gradients import mean_gradient
from expunge.models import answers
from tests.conftest import build_model
from tests.oracles import slow

CUTS = {"ones": 1, "fours": 4, "all": 16}


def texts(count: int = 16, vocabulary: int = 40) -> list[Encoded]:
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(4, 24, (count,), generator=draw).tolist()
    starts = [int(torch.randint(1, length, (), generator=draw)) for length in lengths]
    return [
        Encoded(tuple(torch.randint(vocabulary, (length,), generator=draw).tolist()), start)
        for length, start in zip(lengths, starts, strict=True)
    ]


def weight(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def test_least_squares_by_hand() -> None:
    # l = ½ (w·x − y)², so ∇l = (w·x − y) x; residuals −1, 1, 3 at w = (1, 2)
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([2.0, 1.0, 0.0])
    w = weight(1, 2)
    got = mean_gradient({"w": w}, lambda i: 0.5 * (x[i] @ w - y[i]).square(), [[2, 0], [1]])
    assert got["w"].tolist() == pytest.approx([(-1 + 3) / 3, (1 + 3) / 3])


@pytest.mark.parametrize("size", CUTS.values(), ids=CUTS)
def test_any_cut_gives_the_mean_gradient(size: int) -> None:
    model, items = build_model(40).eval(), texts()

    def losses(indices: list[int]) -> Tensor:
        return answers(model, collate([items[index] for index in indices])).mean_nll

    passes = packs([len(item) for item in items], size)
    got = mean_gradient(dict(model.named_parameters()), losses, passes)
    whole = mean_gradient(dict(model.named_parameters()), losses, [list(range(16))])
    expected, _ = slow.moments(model, items)
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
        assert (gradient - whole[name]).norm() <= 1e-6 * whole[name].norm(), name


def test_thousands_of_passes_lose_nothing() -> None:
    scales = 1 + torch.rand(5000, generator=torch.Generator().manual_seed(0))
    w = weight(1)
    got = mean_gradient({"w": w}, lambda i: scales[i] * w, [[index] for index in range(5000)])
    assert got["w"].item() == pytest.approx(scales.double().mean().item(), rel=2e-7)


def test_bf16_weights_are_summed_in_fp32() -> None:
    # 1,000 gradients of 1 and then 1,000 of 3: bf16 would stop adding 1 at 256
    w = weight(1, dtype=torch.bfloat16)
    scales = torch.tensor([1.0, 3.0], dtype=torch.bfloat16).repeat_interleave(1000)
    got = mean_gradient({"w": w}, lambda i: scales[i] * w, [[index] for index in range(2000)])
    assert got["w"].dtype == torch.float32
    assert got["w"].item() == 2.0


def test_a_parameter_out_of_reach_gets_zeros() -> None:
    w, other = weight(1, 1), weight(5, 6, 7)
    got = mean_gradient({"w": w, "other": other}, lambda i: w.sum() * torch.ones(len(i)), [[0], [1, 2]])
    assert got["other"].tolist() == [0, 0, 0]
    assert got["w"].tolist() == [1, 1]


def test_losses_that_reach_nothing_give_zeros() -> None:
    assert mean_gradient({"w": weight(1)}, lambda i: torch.ones(len(i)), [[0]])["w"].tolist() == [0]


def test_gradients_and_flags_stay_as_they_were() -> None:
    kept, bare, frozen = weight(1), weight(2), weight(3).requires_grad_(False)
    kept.grad = torch.tensor([9.0])
    params = {"kept": kept, "bare": bare, "frozen": frozen}
    with torch.no_grad():
        got = mean_gradient(params, lambda i: (kept * bare * frozen).expand(len(i)), [[0, 1]])
    assert {name: gradient.item() for name, gradient in got.items()} == {"kept": 6, "bare": 3, "frozen": 2}
    assert kept.grad.tolist() == [9.0]
    assert bare.grad is None
    assert frozen.grad is None
    assert [param.requires_grad for param in params.values()] == [True, True, False]


def test_flags_come_back_after_a_failure() -> None:
    frozen = weight(3).requires_grad_(False)

    def fail(_: object) -> Tensor:
        assert frozen.requires_grad
        raise OSError("the data went away")

    with pytest.raises(OSError, match="went away"):
        mean_gradient({"frozen": frozen}, fail, [[0]])
    assert not frozen.requires_grad


def test_a_gradient_that_is_not_finite_is_named() -> None:
    good, bad = weight(1), weight(0)
    with pytest.raises(DivergedError, match="gradient of bad is not finite"):  # d√w/dw at 0
        mean_gradient({"good": good, "bad": bad}, lambda i: (good + bad.sqrt()).expand(len(i)), [[0]])


def test_it_stops_at_the_first_loss_that_is_not_finite() -> None:
    w, seen = weight(1), []

    def losses(indices: list[int]) -> Tensor:
        seen.extend(indices)
        return w / torch.tensor([1.0, 0.0, 1.0])[indices]

    with pytest.raises(DivergedError, match="gradient of w is not finite"):
        mean_gradient({"w": w}, losses, [[0], [1], [2]])
    assert seen == [0, 1]


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the set is empty"):
        mean_gradient({"w": weight(1)}, lambda i: torch.ones(0), [])


def test_progress_counts_examples() -> None:
    w, told = weight(1), []
    mean_gradient({"w": w}, lambda i: w.expand(len(i)), [[0, 1], [2]], progress=told.append)
    assert told == [2, 3]
