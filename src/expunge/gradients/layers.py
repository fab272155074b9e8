"""Per-example gradients from one batched backward pass, layer by layer, without ever holding B of them.

Of a linear layer y = W a + b with inputs a [B, T, in] and output gradients δ [B, T, out], example i's gradient is
G_i = δ_iᵀ a_i: the same multiplications as the batch's weight gradient Σ_i G_i, only kept apart. Here they take that
gradient's place: while the backward pass is at the layer, G_1 … G_B are made one after the other, a block of rows at a
time that stays in the processor's cache, and added to the sums of G and of G ⊙ G.

An embedding's gradient is summed per token within an example first. Where it is tied to the output layer, whose gradient
comes first, the rows of the example's own tokens wait until the embedding's part has been added. Small elementwise
parameters (norms) are used as B copies, so that autograd itself keeps the examples apart.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from expunge.data import Batch
from expunge.errors import ConfigurationError
from expunge.gradients.mean import Sums, backward
from expunge.models import answers, output_layer

CPU_BLOCK = 2**17  # entries of G at a time: 512 KiB, half of a usual second-level cache
GPU_BLOCK = 2**26  # 256 MiB: there only memory matters
Spans = list[tuple[int, int]]
Forward = Callable[..., Tensor]


class UnsupportedError(ConfigurationError):
    """A parameter is used in a way the layer-wise computation does not know."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"Per-example gradients layer by layer: {where} {why}. Use way='loop' instead.")


class Layers:
    """Adds the gradients of the examples of one pass after another to `first`, and their squares to `second`.

    `params`: the parameters wanted, by name; no other may require grad. Raises UnsupportedError, naming the module, where
    one belongs to a module of an unknown kind (at once) or is used outside its module or twice (in the first pass).
    """

    def __init__(self, model: nn.Module, params: Mapping[str, nn.Parameter], first: Sums, second: Sums) -> None:
        self.model, self.params, self.first, self.second = model, params, first, second
        self.forwards = dict(self._plan())

    def add(self, batch: Batch, lengths: Sequence[int]) -> Tensor:
        """Add one pass; `lengths`: its examples' lengths without padding. Returns the sum of their losses."""
        self._begin(batch, lengths)
        with self._installed():
            total = answers(self.model, batch).mean_nll.sum()
            leaves = [*self.params.values(), *(copy for _, copy in self.copies)]
            gradients = backward(total, leaves)
        for name, gradient in zip(self.params, gradients, strict=False):
            if gradient is not None:
                raise UnsupportedError(name, "is used by something other than the module that holds it")
        for (name, _), gradient in zip(self.copies, gradients[len(self.params) :], strict=True):
            if gradient is not None:
                self._add_rows(name, gradient.reshape(batch.size, -1))
        self.first.added(batch.size)
        self._begin(batch, lengths)
        return total.detach()

    def _begin(self, batch: Batch, lengths: Sequence[int]) -> None:
        size, width = batch.ids.shape
        edges = [0, *torch.bincount(batch.row, minlength=size).cumsum(0).tolist()]
        self.batch = batch
        self.body: Spans = [(row * width, row * width + length) for row, length in enumerate(lengths)]
        self.head: Spans = list(pairwise(edges))  # of each example, its rows among the N labelled
        self.called = set[str]()
        self.copies = list[tuple[str, Tensor]]()  # of elementwise parameters, one row per example
        self.tokens = dict[str, list[tuple[Tensor, Tensor]]]()  # of embeddings: each example's tokens, and their places
        self.held = dict[str, list[Tensor]]()  # of tied ones: the output layer's gradient for each example's tokens

    # What each module does instead of its own forward

    def _plan(self) -> Iterator[tuple[nn.Module, tuple[str, Forward]]]:
        names = {id(param): name for name, param in self.params.items()}
        users: dict[str, list[nn.Module]] = {name: [] for name in names.values()}
        for where, module in self.model.named_modules():
            mine = {slot: names[id(param)] for slot, param in module._parameters.items() if id(param) in names}
            for name in mine.values():
                users[name].append(module)
            if mine:
                yield module, (where, self._instead(module, where, mine))
        for name, modules in users.items():
            if len(modules) > 1 and not (
                [type(module) for module in modules] == [nn.Embedding, nn.Linear]
                and modules[1] is output_layer(self.model)
            ):
                raise UnsupportedError(name, "is shared by modules other than an embedding and the output layer")

    def _instead(self, module: nn.Module, where: str, mine: dict[str, str]) -> Forward:
        """How `module` computes with its parameters `mine` (slot → name) so that examples stay apart."""
        kind = type(module)
        if "forward" in vars(module):
            raise UnsupportedError(where, "has a forward of its own, put there by another library")
        if isinstance(module, nn.Linear | Conv1D) and kind in (nn.Linear, Conv1D):
            sink = _Sink(self, where, mine, left_is_input=kind is Conv1D)
            return lambda x: _Affine.apply(x, module.weight, module.bias, kind is Conv1D, sink)
        if isinstance(module, nn.Embedding) and kind is nn.Embedding:
            if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
                raise UnsupportedError(where, "is an embedding with max_norm, scale_grad_by_freq or sparse gradients")
            return lambda ids: _Lookup.apply(*self._looked_up(ids, module, where, mine["weight"]))
        if isinstance(module, nn.LayerNorm) and kind is nn.LayerNorm:
            return lambda x: self._layer_norm(x, module, where, mine)
        if "RMSNorm" in kind.__name__ and set(module._parameters) == {"weight"} and _plain(module):
            return lambda x, *rest: self._scaled(module, where, mine, x, *rest)
        raise UnsupportedError(where, f"is a {kind.__name__}, which it does not know")

    @contextmanager
    def _installed(self) -> Iterator[None]:
        try:
            for module, (_, forward) in self.forwards.items():
                module.forward = forward
            yield
        finally:
            for module in self.forwards:
                vars(module).pop("forward", None)

    def _looked_up(self, ids: Tensor, module: nn.Embedding, where: str, name: str) -> tuple[Any, ...]:
        self.once(where)
        size, width = self.batch.ids.shape
        if ids.dim() != 2 or ids.shape[0] not in (1, size) or ids.shape[1] != width:
            raise UnsupportedError(where, f"looks up ids of shape {tuple(ids.shape)}")
        ids = ids.expand(size, width)  # positions come once for the whole batch
        found = []
        for row, (start, stop) in enumerate(self.body):
            tokens, places = ids[row, : stop - start].unique(return_inverse=True)
            found.append((tokens, places))
        self.tokens[name] = found
        return ids, module.weight, lambda delta: self._embedded(delta, name, module.padding_idx)

    def _layer_norm(self, x: Tensor, module: nn.LayerNorm, where: str, mine: dict[str, str]) -> Tensor:
        x = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
        copies = self._copies(module, where, mine, x)
        if "weight" in copies:
            x = x * copies["weight"]
        return x + copies["bias"] if "bias" in copies else x

    def _scaled(self, module: nn.Module, where: str, mine: dict[str, str], x: Tensor, *rest: Any) -> Tensor:
        copies = self._copies(module, where, mine, x)
        forward = vars(module).pop("forward")
        try:
            return functional_call(module, copies, (x, *rest))
        finally:
            module.forward = forward

    def _copies(self, module: nn.Module, where: str, mine: dict[str, str], x: Tensor) -> dict[str, Tensor]:
        """The module's parameters [d], those in `mine` as one leaf [B, 1, …, 1, d] for `x` [B, …, d]."""
        self.once(where)
        if x.dim() < 3 or x.shape[0] != self.batch.size:
            raise UnsupportedError(where, f"works on a tensor of shape {tuple(x.shape)}, not on one row per example")
        copies = dict[str, Tensor]()
        for slot, param in module._parameters.items():
            if param is None:
                continue
            copies[slot] = param
            if slot in mine:
                if param.dim() != 1:
                    raise UnsupportedError(where, f"has a parameter {slot} of shape {tuple(param.shape)}")
                shape = (x.shape[0], *[1] * (x.dim() - 2), param.shape[0])
                copies[slot] = param.detach().expand(shape).clone().requires_grad_()
                self.copies.append((mine[slot], copies[slot]))
        return copies

    # What the backward pass finds

    def once(self, where: str) -> None:
        if where in self.called:
            raise UnsupportedError(where, "runs more than once in a pass")
        self.called.add(where)

    def spans(self, x: Tensor, where: str) -> Spans:
        """Each example's rows of `x` [.., d] once its leading dimensions are flattened."""
        size, width = self.batch.ids.shape
        if x.dim() == 3 and x.shape[:2] == (size, width):
            return self.body
        if x.dim() == 3 and x.shape[:2] == (1, len(self.batch.labels)):
            return self.head
        raise UnsupportedError(where, f"works on a tensor of shape {tuple(x.shape)}, not on one row per token")

    def add_outer(self, name: str, left: Tensor, right: Tensor, spans: Spans) -> None:
        """Add G_i = left_iᵀ right_i of each example: left [rows, p], right [rows, q], G [p, q]."""
        first, second = self.first.at(name), self.second.at(name)
        p, q = first.shape
        block = max(1, (CPU_BLOCK if left.device.type == "cpu" else GPU_BLOCK) // q)
        buffer = torch.empty(min(block, p), q, device=left.device)
        pairs = [(left[start:stop].float(), right[start:stop].float()) for start, stop in spans]
        waiting = self._held(name, q, left.device)
        for start in range(0, p, block):
            stop = min(start + block, p)
            total, squares, g = first[start:stop], second[start:stop], buffer[: stop - start]
            for example, (a, b) in enumerate(pairs):
                torch.mm(a[:, start:stop].t(), b, out=g)
                total.add_(g)
                if waiting:
                    tokens, held, order = waiting[example]
                    low, high = bisect_left(order, start), bisect_left(order, stop)
                    if low < high:
                        rows = tokens[low:high] - start
                        held[low:high] = g[rows]
                        g[rows] = 0
                squares.addcmul_(g, g)

    def _held(self, name: str, width: int, device: torch.device) -> list[tuple[Tensor, Tensor, list[int]]]:
        """Where the output layer's part for the tokens of each example is to wait for a tied embedding's."""
        if name not in self.tokens:
            return []
        self.held[name] = [torch.empty(len(tokens), width, device=device) for tokens, _ in self.tokens[name]]
        pairs = zip(self.tokens[name], self.held[name], strict=True)
        return [(tokens, held, tokens.tolist()) for (tokens, _), held in pairs]

    def _embedded(self, delta: Tensor, name: str, padding: int | None) -> None:
        """Add an embedding's part, from the gradient `delta` [B, T, d] of its output."""
        first, second = self.first.at(name), self.second.at(name)
        for row, (tokens, places) in enumerate(self.tokens[name]):
            own = torch.zeros(len(tokens), delta.shape[-1], device=delta.device)
            own.index_add_(0, places, delta[row, : len(places)].float())
            if padding is not None:
                own[tokens == padding] = 0  # autograd gives that token no gradient either
            first.index_add_(0, tokens, own)
            if name in self.held:
                own += self.held[name][row]
            second.index_add_(0, tokens, own.square_())

    def add_bias(self, name: str, delta: Tensor, spans: Spans) -> None:
        """Add the gradients of a bias [d], from the gradient `delta` [rows, d] of the module's output."""
        self._add_rows(name, torch.stack([delta[start:stop].float().sum(0) for start, stop in spans]))

    def _add_rows(self, name: str, rows: Tensor) -> None:
        """Add one gradient per row: [B, d]."""
        rows = rows.float()
        self.first.at(name).add_(rows.sum(0))
        self.second.at(name).add_(rows.square().sum(0))


def _plain(module: nn.Module) -> bool:
    """Whether a norm is written in plain tensor operations, as transformers' are: a fused one takes no B copies."""
    return type(module).__module__.startswith("transformers.") and not isinstance(module, nn.RMSNorm)


class _Sink:
    """Takes a linear module's input and output gradient."""

    def __init__(self, layers: Layers, where: str, mine: dict[str, str], left_is_input: bool) -> None:
        self.layers, self.where, self.mine, self.left_is_input = layers, where, mine, left_is_input

    def enter(self, x: Tensor) -> None:
        self.layers.once(self.where)
        self.layers.spans(x, self.where)

    def take(self, x: Tensor, delta: Tensor) -> None:
        spans = self.layers.spans(x, self.where)
        x, delta = x.flatten(0, 1), delta.flatten(0, 1)
        if "weight" in self.mine:
            left, right = (x, delta) if self.left_is_input else (delta, x)
            self.layers.add_outer(self.mine["weight"], left, right, spans)
        if "bias" in self.mine:
            self.layers.add_bias(self.mine["bias"], delta, spans)


class _Affine(torch.autograd.Function):
    """y = x Wᵀ + b (or x W + b where `transposed`) whose backward tells `sink` instead of making W's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, sink: _Sink) -> Tensor:
        sink.enter(x)
        ctx.save_for_backward(x, weight)
        ctx.transposed, ctx.sink = transposed, sink
        return F.linear(x, weight.t() if transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        ctx.sink.take(x, deltas[0])
        below = deltas[0] @ (weight.t() if ctx.transposed else weight) if ctx.needs_input_grad[0] else None
        return below, None, None, None, None


class _Lookup(torch.autograd.Function):
    """Rows of an embedding, whose backward tells `sink` instead of making the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, sink: Callable[[Tensor], None]) -> Tensor:
        ctx.sink = sink
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[None, ...]:
        ctx.sink(deltas[0])
        return None, None, None
