"""Probes of a model: which of its sequences may share a forward pass without changing each other's numbers.

A causal transformer scores a sequence alike alone, beside others in a padded batch, and as one branch of a prefix tree.
A convolution, a recurrent state or a window that counts columns does not: along a row it carries one branch into the
next. Names and configurations do not tell which is which, so real sequences are scored both ways and compared number by
number.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.data.tree import Tree, merge

Sharing = Literal["padded", "even", "single"]  # one pass: any lengths, equal lengths, one sequence
OfTrees = Callable[[list[Tree]], Tensor]  # statistics [K, N] of the labels of each tree's sequences, end to end
OfSequences = Callable[[list[Encoded]], Tensor]
TOLERANCE = 2e-5  # of a number, relative or absolute, whichever is more; fp32 rounds to about 1e-6
ARGMAX = 1  # the row of the statistics that is true or false: within rounding, either is right
REFUSALS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    NotImplementedError,
    AssertionError,
)


def takes_trees(trees: Sequence[Tree], of_trees: OfTrees, of_sequences: OfSequences, eps: float) -> bool:
    """Whether sequences merged into trees are scored as they are alone.

    Tried on the widest of `trees`, and at up to three lengths on trees made so that no leak can pass: the branch that
    comes first ends in other tokens than those the second one continues, at every distance from its end. What a layer
    carries over from the tokens before it in the row then differs from what it would have seen without the tree. Both
    orders are tried, and a third run replaces the tokens of the first branch, which must leave the second unchanged.
    eps: the rounding unit of the model's numbers.
    """
    items = sorted((item for tree in trees for item in tree.items), key=len)
    pool = sorted({token for item in items for token in item.ids})
    wide = max(trees, key=len)
    try:
        if not _as_alone([wide], of_trees, of_sequences, eps):
            return False
        for item in {len(item): item for item in (items[-1], items[len(items) // 2], items[0])}.values():
            first, other, further = _branches(item.ids, pool)
            probes = [merge([first, other]), merge([other, first]), merge([further, first])]
            if not _as_alone(probes[:2], of_trees, of_sequences, eps):
                return False
            one, two = (of_trees([probe])[:, -len(first.labels) :] for probe in probes[1:])
            if len(probes[1]) == len(probes[2]) and not agree(one, two, 0.0):
                return False
    except REFUSALS:
        return False
    return True


def _branches(ids: tuple[int, ...], pool: Sequence[int]) -> tuple[Encoded, Encoded, Encoded]:
    """The sequence, and two that leave it at its middle and end in other tokens than its first half does, and each other.

    Token j from the end of a branch differs from token j from the end of the half, for every j.
    """
    half = max(1, len(ids) // 2)
    pool = pool if len(pool) > 2 else [*pool, max(pool) - 1, max(pool) - 2] if max(pool) > 2 else [0, 1, 2, 3]
    place = {token: index for index, token in enumerate(pool)}

    def tail(step: int) -> tuple[int, ...]:
        source = [ids[(half - 1 - back) % half] for back in range(len(ids) - half)][::-1]
        tokens = [pool[(place.get(token, 0) + step) % len(pool)] for token in source]
        if tokens and tokens[0] == ids[half]:  # it has to leave the sequence at once
            tokens.insert(0, next(token for token in pool if token != ids[half]))
        return tuple(tokens)

    sequences = [ids, ids[:half] + tail(1), ids[:half] + tail(2)]
    return tuple(Encoded(tokens, 1) for tokens in sequences)  # type: ignore[return-value]  # pyrefly: ignore


def _as_alone(trees: list[Tree], of_trees: OfTrees, of_sequences: OfSequences, eps: float) -> bool:
    """Whether each tree's first, middle, longest and last sequence are scored in the trees as they are alone."""
    items = [item for tree in trees for item in tree.items]
    columns = of_trees(trees).split([len(item.labels) for item in items], dim=1)
    longest = max(range(len(items)), key=lambda index: len(items[index]))
    indices = sorted({0, len(items) // 2, longest, len(items) - 1})
    found = torch.cat([columns[index] for index in indices], dim=1)
    return agree(found, torch.cat([of_sequences([items[index]]) for index in indices], dim=1), eps)


def sharing(items: Sequence[Encoded], of_sequences: OfSequences, eps: float, *, pad_breaks: bool = False) -> Sharing:
    """How sequences may share a pass: padded to any length, with others of their length only, or not at all.

    pad_breaks: padding is known to change numbers. Tried on the longest, the shortest and a middle sequence together,
    then on the longest beside one of its own length with other tokens.
    """
    if len(items) < 2:
        return "padded"
    ordered = sorted(items, key=len)
    mixed = [ordered[-1], ordered[len(ordered) // 2], ordered[0]]
    if not pad_breaks and _together(mixed, of_sequences, eps):
        return "padded"
    longest = ordered[-1]
    twin = Encoded(longest.ids[::-1], longest.start)
    return "even" if _together([longest, twin], of_sequences, eps) else "single"


def _together(items: list[Encoded], of_sequences: OfSequences, eps: float) -> bool:
    expected = torch.cat([of_sequences([item]) for item in items], dim=1)
    try:
        found = of_sequences(items)
    except REFUSALS:
        return False
    return agree(found, expected, eps)


def agree(found: Tensor, expected: Tensor, eps: float) -> bool:
    """Whether two tables of statistics [K, N] are the same number by number, but for rounding to `eps`."""
    rows = [row for row in range(len(expected)) if row != ARGMAX]
    found, expected = found[rows].double(), expected[rows].double()
    if found.shape != expected.shape:
        return False
    bound = max(TOLERANCE, 8 * eps) * expected.abs().clamp_min(1.0)
    return bool(((found - expected).abs() <= bound).all())


def border(config: Any) -> int | None:
    """The length in tokens beyond which the model turns *all* positions of a pass otherwise; None if there is none.

    LongRoPE and dynamic NTK choose their frequencies by the longest sequence of a pass (Phi-3: 4096).
    """
    config = config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in (parameters, *nested):
        kind = rope.get("rope_type") or rope.get("type") or ""
        if kind == "longrope" or "dynamic" in str(kind):
            limit = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            return limit or getattr(config, "max_position_embeddings", None)
    return None


_ANSWERS: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


def remembered(model: nn.Module, key: tuple[Any, ...], probe: Callable[[], Any]) -> Any:
    """What `probe` says of the model as it is now, asked once for each key until its weights change."""
    versions = sum(param._version for param in model.parameters() if not param.is_inference())
    answers = _ANSWERS.setdefault(model, {})
    if (key, versions) not in answers:
        answers[key, versions] = probe()
    return answers[key, versions]
