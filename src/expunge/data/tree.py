"""Prefix trees: sequences that begin alike share their beginning's tokens, and so its cost.

All answers to one question (the right one, its paraphrase, the wrong ones) repeat the question's tokens, and often the
beginning of each other. Merged into one tree they are one row of a batch, each token once:

    Who is Ada?─┬─She is─┬─a smith.        ids    Who is Ada? She is a smith. the queen. He is a cook.
                │        └─the queen.      depth   0   1   2   3  4 5  6     5    6     3  4 5  6
                └─He is a cook.

A token's position is its depth, and it attends to itself and its ancestors only: to a causal model exactly what stands
before it in its own sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.batching import Side
from expunge.data.encoding import Encoded

LEAST_SHARED = 0.25  # of a sequence: below, what sharing saves is lost again to attention over a longer row


@dataclass(frozen=True)
class Tree:
    """Sequences merged into one row of T nodes, depth first, so that a node's descendants directly follow it.

    items: the sequences. ids, depth: [T] each node's token, and how many stand before it in its sequence. end: [T]
    where its descendants end: those of node j are the nodes j + 1 to end[j] − 1. sources: for each sequence, the node
    that predicts each of its labels.
    """

    items: list[Encoded]
    ids: list[int]
    depth: list[int]
    end: list[int]
    sources: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Grove:
    """Padded trees and where their labelled tokens stand.

    ids, depth, end: [B, T], see Tree; padding has no descendants. predicts: [B, T] true at each of the P nodes that
    predict at least one label. labels: [N], sequence by sequence. source: [N] which of the P nodes, row by row,
    predicts each label.
    """

    ids: Tensor
    depth: Tensor
    end: Tensor
    predicts: Tensor
    labels: Tensor
    source: Tensor

    def to(self, device: torch.device | str) -> "Grove":
        return Grove(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def mask(self, dtype: torch.dtype) -> Tensor:
        """[B, 1, T, T] what attention adds to its scores: 0 from each node to itself and its ancestors, else −∞.

        The −∞ is the lowest finite number of `dtype`, as models write it. Node j is an ancestor of i, or i itself, if
        j ≤ i < end[j].
        """
        node = torch.arange(self.ids.shape[1], device=self.ids.device)
        seen = (node <= node[:, None]) & (node[:, None] < self.end[:, None, :])  # [B, T, T]
        return torch.zeros((), dtype=dtype, device=node.device).masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


def plant(items: Sequence[Encoded], limit: int) -> list[Tree]:
    """Merge sequences that begin alike into trees of at most `limit` nodes (or one sequence, if that is longer).

    In the order of their tokens, sequences with long common beginnings are neighbours. One joins the tree of the
    sequence before it where at least a quarter of its tokens is shared. Most sequences stay alone where nothing is
    repeated.
    """
    trees: list[list[Encoded]] = []
    nodes = 0
    for item in sorted(items, key=lambda item: (item.ids, item.start)):
        shared = common(trees[-1][-1].ids, item.ids) if trees else 0
        if shared >= LEAST_SHARED * len(item) and nodes + len(item) - shared <= limit:
            trees[-1].append(item)
            nodes += len(item) - shared
        else:
            trees.append([item])
            nodes = len(item)
    return [merge(tree) for tree in trees]


def merge(items: Sequence[Encoded]) -> Tree:
    """One tree of sequences given in the order of their tokens."""
    ids: list[int] = []
    depth: list[int] = []
    end: list[int] = []
    sources = []
    path: list[int] = []  # the nodes of the sequence before
    for before, item in zip([None, *items], items, strict=False):
        shared = common(before.ids, item.ids) if before else 0
        for node in path[shared:]:
            end[node] = len(ids)
        path = [*path[:shared], *range(len(ids), len(ids) + len(item) - shared)]
        ids += item.ids[shared:]
        depth += range(shared, len(item))
        end += [0] * (len(item) - shared)
        sources.append(path[item.start - 1 : len(item) - 1])
    for node in path:
        end[node] = len(ids)
    return Tree(list(items), ids, depth, end, sources)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    both = min(len(one), len(other))
    return next((place for place in range(both) if one[place] != other[place]), both)


def by_size(trees: Sequence[Tree], nodes: int) -> Iterator[list[Tree]]:
    """Trees of like size, the largest first, in batches of at most `nodes` nodes with padding, or one tree."""
    batch: list[Tree] = []
    for tree in sorted(trees, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > nodes:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def collate_trees(trees: Sequence[Tree], pad: int = 0, side: Side = "right") -> Grove:
    """Pad trees to one length."""
    length = max(map(len, trees))
    ids = torch.full((len(trees), length), pad)
    depth = torch.zeros(len(trees), length, dtype=torch.long)
    end = torch.arange(1, length + 1).repeat(len(trees), 1)
    places: list[int] = []
    for row, tree in enumerate(trees):
        first = length - len(tree) if side == "left" else 0
        part = slice(first, first + len(tree))
        ids[row, part] = torch.tensor(tree.ids)
        depth[row, part] = torch.tensor(tree.depth)
        end[row, part] = torch.tensor(tree.end) + first
        places += [row * length + first + node for source in tree.sources for node in source]
    labels = torch.tensor([token for tree in trees for item in tree.items for token in item.labels])
    place = torch.tensor(places)  # [N]
    predicts = torch.zeros(len(trees) * length, dtype=torch.bool)
    predicts[place] = True
    source = (predicts.cumsum(0) - 1)[place]
    return Grove(ids, depth, end, predicts.view(len(trees), length), labels, source)
