"""Every loss against a slow computation in float64, one example at a time."""

import copy

import pytest
import torch

from expunge.data import Encoder, by_length
from expunge.losses import DPO, KL, LOSSES, NLL, NPO, Ascent, Refusal, SimNPO
from expunge.models import answers
from expunge.request import Example
from expunge.training.sides import REFUSALS, ReferenceCache, Side
from tests.oracles import slow


@pytest.fixture
def moved(tiny):
    """The model some way from the reference."""
    model = copy.deepcopy(tiny.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    return model


def ratio(reference, model, item):
    """log p − log p_ref of one response, both in float64."""
    return slow.token_nll(reference, item).sum() - slow.token_nll(model, item).sum()


def expected(loss, reference, model, versions):
    """The oracle: the paper's formula for one example."""
    first = versions[0]
    match loss:
        case NLL() | Refusal():
            return slow.mean_nll(model, first)
        case Ascent():
            return -slow.mean_nll(model, first)
        case NPO(beta=beta, reduction=reduction):
            r = ratio(reference, model, first) / (len(first.labels) if reduction == "mean" else 1)
            return -2 / beta * slow.log_sigmoid(-beta * r)
        case SimNPO(beta=beta, delta=delta):
            return -2 / beta * slow.log_sigmoid(beta * (slow.mean_nll(model, first) - delta))
        case DPO(beta=beta):
            margin = ratio(reference, model, versions[1]) - ratio(reference, model, first)
            return -2 / beta * slow.log_sigmoid(beta * margin)
        case KL():
            p, q = slow.logprobs(reference, first), slow.logprobs(model, first)
            return (p.exp() * (p - q)).sum(-1).mean()
    raise AssertionError(f"no oracle for {loss}")


VARIANTS = [
    *(kind() for kind in LOSSES.values()),
    NPO(beta=0.5, reduction="mean"),
    SimNPO(beta=2.0, delta=0.3),
    DPO(0.4),
]


@pytest.mark.parametrize("loss", VARIANTS, ids=str)
def test_loss_equals_slow_computation(tiny, moved, examples, loss) -> None:
    side = Side.of(loss, examples, Encoder(tiny.tokenizer))
    if loss.reference:
        side.cache = ReferenceCache(tiny.model, side, range(4), batch_size=3, pad=0, device="cpu")
    indices = [2, 0, 3, 1]
    got, _ = side.values(answers(moved, batch_of(side, indices)), indices)
    reference, model = slow.double(tiny.model), slow.double(moved)
    want = torch.stack([expected(loss, reference, model, side.items[index]) for index in indices])
    # a loss is made of sums of token NLLs, so fp32 rounds it to about eps × the largest such sum
    largest = max(slow.token_nll(model, item).sum().item() for index in indices for item in side.items[index])
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2**-23 * largest)


def batch_of(side, indices):
    from expunge.data import collate

    return collate(side.encoded(indices))


def test_top_k_kl_is_a_lower_bound_that_grows_to_the_whole(tiny, moved, examples) -> None:
    values = {}
    for k in (1, 20, 200, None):
        side = Side.of(KL(top_k=k), examples, Encoder(tiny.tokenizer))
        side.cache = ReferenceCache(tiny.model, side, range(4), batch_size=2, pad=0, device="cpu")
        values[k], _ = side.values(answers(moved, batch_of(side, [0, 1, 2, 3])), [0, 1, 2, 3])
    assert (values[1] < values[20]).all()
    assert (values[20] < values[200]).all()
    assert (values[200] <= values[None] + 1e-6).all()
    p = slow.logprobs(slow.double(tiny.model), side.items[0][0])
    q = slow.logprobs(slow.double(moved), side.items[0][0])
    top = p.topk(20).indices
    pk, qk = p.gather(1, top).exp(), q.gather(1, top).exp()
    lumped = (pk * (pk / qk).log()).sum(-1) + (1 - pk.sum(-1)) * ((1 - pk.sum(-1)) / (1 - qk.sum(-1))).log()
    torch.testing.assert_close(values[20][0].double(), lumped.mean(), rtol=1e-4, atol=1e-6)


def test_npo_starts_as_gradient_ascent(tiny, examples) -> None:
    """At the reference ∇NPO = ∇(log p) whatever β (arXiv 2404.05868, §3): so masks of both agree."""
    side = Side.of(NPO(beta=0.3), examples, Encoder(tiny.tokenizer))
    side.cache = ReferenceCache(tiny.model, side, range(4), batch_size=4, pad=0, device="cpu")
    loss, _ = side.values(answers(tiny.model, batch_of(side, [0])), [0])
    params = list(tiny.model.parameters())
    npo = torch.autograd.grad(loss.sum(), params)
    ascent = torch.autograd.grad(-answers(tiny.model, batch_of(side, [0])).sum_nll.sum(), params)
    for one, other in zip(npo, ascent, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_alternative_is_the_new_response_else_a_refusal(tiny) -> None:
    plain = Example(prompt="Who?", response="Ada.")
    corrected = Example(prompt="Who?", response="Ada.", new_response="Nobody.")
    side = Side.of(Refusal(), [plain, corrected], Encoder(tiny.tokenizer))
    texts = [tiny.tokenizer.decode(item.labels[:-1]).strip() for (item,) in side.items]
    assert texts[0] in REFUSALS
    assert texts[1] == "Nobody."


def test_reference_holds_only_what_will_be_drawn(tiny, examples) -> None:
    side = Side.of(NPO(), examples, Encoder(tiny.tokenizer))
    cache = ReferenceCache(tiny.model, side, [3, 1], batch_size=1, pad=0, device="cpu")
    (nll,) = cache.get([1, 3], torch.device("cpu"))
    items = [side.items[1][0], side.items[3][0]]
    want = torch.stack([slow.token_nll(slow.double(tiny.model), item).sum() for item in items])
    torch.testing.assert_close(nll.double(), want, rtol=1e-5, atol=0)
    with pytest.raises(KeyError):
        cache.get([0], torch.device("cpu"))


def test_by_length_covers_everything_once(tiny, examples) -> None:
    items = Encoder(tiny.tokenizer).examples(examples)
    parts = list(by_length(items, 3))
    assert sorted(index for part in parts for index in part) == [0, 1, 2, 3]
    assert len(items[parts[0][0]]) == max(map(len, items))
