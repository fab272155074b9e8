"""Prefix trees against hand-made cases and a slow reading of what each token may see."""

import random

import pytest
import torch

from expunge.data import Encoded
from expunge.data.tree import by_size, collate_trees, merge, plant


def test_a_tree_by_hand() -> None:
    items = [Encoded((5, 6, 7), 2), Encoded((5, 6, 7, 8), 2), Encoded((5, 6, 9, 8), 2), Encoded((5, 9), 1)]
    tree = merge(items)
    assert tree.ids == [5, 6, 7, 8, 9, 8, 9]
    assert tree.depth == [0, 1, 2, 3, 2, 3, 1]
    assert tree.end == [7, 6, 4, 4, 6, 6, 7]
    assert tree.sources == [[1], [1, 2], [1, 4], [0]]


def test_a_grove_by_hand() -> None:
    trees = [merge([Encoded((5, 6, 7), 1), Encoded((5, 6, 8), 2)]), merge([Encoded((4, 3), 1)])]
    for side, rows in (("right", [[5, 6, 7, 8], [4, 3, 0, 0]]), ("left", [[5, 6, 7, 8], [0, 0, 4, 3]])):
        grove = collate_trees(trees, 0, side)
        assert grove.ids.tolist() == rows
        assert grove.labels.tolist() == [6, 7, 8, 3]
        assert grove.source.tolist() == [0, 1, 1, 2]
        assert grove.ids[grove.predicts].tolist() == [5, 6, 4]
    allowed = grove.mask(torch.float32)[:, 0] == 0
    first = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert allowed.int().tolist() == [first, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]
    assert grove.mask(torch.bfloat16).min() == torch.finfo(torch.bfloat16).min


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("limit", [1, 20, 1000])
def test_each_token_sees_its_own_sequence(side: str, limit: int) -> None:
    draw = random.Random(limit)
    texts = {tuple(draw.choices(range(3), k=draw.randint(2, 9))) for _ in range(60)}
    items = [Encoded(ids, draw.randint(1, len(ids) - 1)) for ids in sorted(texts, key=lambda _: draw.random())]
    trees = plant(items, limit)
    assert sorted(item.ids for tree in trees for item in tree.items) == sorted(texts)
    assert all(len(tree) <= limit or len(tree.items) == 1 for tree in trees)
    batches = list(by_size(trees, 2 * limit))
    assert sum(len(batch) for batch in batches) == len(trees)
    assert all(len(batch) * max(map(len, batch)) <= 2 * limit or len(batch) == 1 for batch in batches)
    for batch in batches:
        grove = collate_trees(batch, 9, side)
        seen = grove.mask(torch.float32)[:, 0] == 0
        row, node = grove.predicts.nonzero()[grove.source].T
        number = 0
        for index, tree in enumerate(batch):
            for item in tree.items:
                for place in range(item.start, len(item)):
                    assert row[number] == index
                    assert grove.labels[number] == item.ids[place]
                    sight = seen[index, node[number]]
                    assert grove.ids[index][sight].tolist() == list(item.ids[:place])
                    assert grove.depth[index][sight].tolist() == list(range(place))
                    number += 1
        assert number == len(grove.labels)


def test_sequences_that_share_little_stay_alone() -> None:
    items = [Encoded((1, *range(2, 10)), 1), Encoded((1, *range(20, 28)), 1), Encoded((1, 2, 3, *range(30, 36)), 1)]
    assert [len(tree.items) for tree in plant(items, 100)] == [2, 1]
    assert [len(tree.items) for tree in plant(items, 14)] == [1, 1, 1]
