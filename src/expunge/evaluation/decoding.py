"""Token after token: how the rows of a generation pass grow, with the model's cache where it can be trusted.

What a text is has one definition here: each token is the likeliest (or the drawn one) of the very logits the scoring
pass computes of the tokens before it. Caches only save time. Every model kind has its own, some keep no tokens, count
padding, or forget to let go of a row, so a way of decoding is tried on the model first:

    padded   left-padded rows of any length, one cache; finished rows leave it, waiting ones join it
    even     rows of one length, neither padding nor positions, one cache of whatever kind; finished rows stay in it
    whole    rows of one length, no cache: the definition itself, and slow

The first two must give the logits of a forward pass over the whole sequence, on prompts of this call and one as long as
its texts may get, and the texts they write must be those such passes would have written.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import ModelError
from expunge.evaluation.flock import Flock, Row, UnfitError, cache_bytes, forward, join, joins, select, trim
from expunge.evaluation.probes import border, remembered
from expunge.evaluation.records import rounding
from expunge.models import Loaded
from expunge.models.forward import inner, last_position_only, settings_of

Way = Literal["padded", "even", "whole"]
Choose = Callable[[Tensor, Tensor], Tensor]  # logits [B, V], numbers in [0, 1) [B] → tokens [B]
TRIED = 4  # steps of a trial, and texts read again


@dataclass(frozen=True)
class Decoding:
    """What all rows of a call share. most: rows at a time of a token's cache of n bytes, as a function of n.

    stop: tokens that end a row. choose: None for the likeliest token. told: called with the number of rows that have
    left off growing.
    """

    loaded: Loaded
    stop: set[int]
    most: Callable[[int], int]
    choose: Choose | None = None
    told: Callable[[int], None] | None = None

    @torch.inference_mode()
    def grow(self, rows: Sequence[Row]) -> None:
        """Let every row grow to its end. Raises ModelError where the model fails on a plain forward pass."""
        finished = sum(not row.growing for row in rows)
        for together in _alike(self.loaded, [row for row in rows if row.growing]):
            self._grow(together, finished)
            finished += len(together)

    def _grow(self, rows: list[Row], finished: int) -> None:
        lengths = [len(row.ids) for row in rows]
        key = ("way", min(lengths), max(lengths), max(row.reach for row in rows))
        limit = border(inner(self.loaded.model).config)
        crossing = limit is not None and max(lengths) <= limit < max(row.reach for row in rows)
        ways: tuple[Way, ...] = () if crossing else ("padded", "even")
        if any(self._written(rows, way, key, finished) for way in ways):
            return
        try:
            self._run(rows, "whole", self.most(0), finished)
        except UnfitError as error:
            raise ModelError(f"{self.loaded.folder}: the model wrote no text: {error}") from error

    def _written(self, rows: list[Row], way: Way, key: tuple[Any, ...], finished: int) -> bool:
        """Whether the rows could grow this way; where the model is unfit for it, they are as they were."""
        size = remembered(self.loaded.model, (*key, way), partial(self._trial, rows, way))
        if size is None:
            return False
        before = [len(row.new) for row in rows]
        try:
            self._run(rows, way, self.most(size), finished)
            fit = self.choose or remembered(self.loaded.model, (*key, way, "read"), lambda: self._likeliest(rows))
        except UnfitError:
            fit = False
        if not fit:
            for row, length in zip(rows, before, strict=True):
                del row.new[length:]
                row.ended = False
        return bool(fit)

    def _run(self, rows: list[Row], way: Way, most: int, finished: int) -> None:
        waiting = deque(sorted(rows, key=lambda row: -len(row.ids)))
        with last_position_only(self.loaded.model):
            if way == "padded":
                self._padded(waiting, most, finished + len(rows))
                return
            for _, same in groupby(waiting, key=lambda row: len(row.ids)):
                of_length = list(same)
                for start in range(0, len(of_length), most):
                    self._in_step(of_length[start : start + most], cached=way == "even")
                    self._tell(finished + sum(not row.growing for row in rows))

    def _tell(self, finished: int) -> None:
        if self.told is not None:
            self.told(finished)

    def _padded(self, waiting: deque[Row], most: int, total: int) -> None:
        flock: Flock | None = None
        while waiting or flock is not None:
            if flock is None or (waiting and len(flock.rows) <= most // 2 and joins(flock.cache)):
                free = most - (len(flock.rows) if flock else 0)
                fresh = self._harvest(self.begin([waiting.popleft() for _ in range(min(free, len(waiting)))]))
                flock = join(flock, fresh) if flock and fresh else flock or fresh
            else:
                flock = self._harvest(self.step(flock))
            self._tell(total - len(waiting) - (len(flock.rows) if flock else 0))

    def begin(self, rows: list[Row]) -> "Flock":
        """One forward pass over the rows' distinct tokens, left-padded to one length."""
        device = next(self.loaded.model.parameters()).device
        places: dict[tuple[int, ...], int] = {}
        of = [places.setdefault(tuple(row.ids), len(places)) for row in rows]
        length = max(map(len, places))
        pad = self.loaded.pad
        ids = torch.tensor(
            [[pad] * (length - len(tokens)) + list(tokens) for tokens in places], device=device
        )  # [D, T]
        mask = torch.tensor([[0] * (length - len(tokens)) + [1] * len(tokens) for tokens in places], device=device)
        logits, cache = forward(self.loaded.model, ids, None, mask)
        if len(places) < len(rows):
            each = torch.tensor(of, device=device)  # [B] the pass's row of each row
            select(cache, each)
            logits, mask = logits[each], mask[each]
        return Flock(rows, cache, mask, logits, self._chosen(logits, rows))

    def step(self, flock: "Flock") -> "Flock":
        """One forward pass over each row's last token."""
        flock = trim(flock, self.loaded.positions)
        mask = F.pad(flock.mask, (0, 1), value=1)
        logits, cache = forward(self.loaded.model, flock.token.unsqueeze(1), flock.cache, mask)
        return Flock(flock.rows, cache, mask, logits, self._chosen(logits, flock.rows))

    def _in_step(self, rows: list[Row], *, cached: bool, steps: int | None = None) -> list[Tensor]:
        """Grow rows of one length by at most `steps` tokens each; the logits [B, V] of every step."""
        device = next(self.loaded.model.parameters()).device
        ids, cache, seen = torch.tensor([row.ids for row in rows], device=device), None, list[Tensor]()
        while any(row.growing for row in rows) and len(seen) != steps:
            fed = ids if cache is None else ids[:, -1:]
            logits, cache = forward(self.loaded.model, fed, cache, cached=cached)
            seen = [*seen, logits] if steps else seen
            token = self._chosen(logits, rows)
            ids = torch.cat([ids, token.unsqueeze(1)], dim=1)
            going = [
                index for index, (row, new) in enumerate(zip(rows, token.tolist(), strict=True)) if self._add(row, new)
            ]
            if not cached and going and len(going) < len(rows):
                rows, ids = [rows[index] for index in going], ids[torch.tensor(going, device=device)]
        return seen

    def _add(self, row: Row, token: int) -> bool:
        """Give a growing row its next token; whether it grows on."""
        if not row.growing:
            return False
        if token in self.stop:
            row.ended = True
        else:
            row.new.append(token)
        return row.growing

    def _chosen(self, logits: Tensor, rows: list[Row]) -> Tensor:
        """Each row's next token: [B]."""
        if self.choose is None:
            return logits.argmax(-1)
        uniform = [0.0 if row.uniform is None or not row.growing else float(row.uniform[len(row.new)]) for row in rows]
        return self.choose(logits, torch.tensor(uniform, dtype=torch.float64, device=logits.device))

    def _harvest(self, flock: "Flock") -> "Flock | None":
        """Add the chosen tokens to the rows and let finished rows go; None if all have."""
        tokens = flock.token.tolist()
        going = [index for index, row in enumerate(flock.rows) if self._add(row, tokens[index])]
        return flock.only(going) if going else None

    def _trial(self, rows: list[Row], way: Way) -> int | None:
        """The bytes a row's token takes in the cache, if the cache gives the logits that whole passes do; else None.

        Greedy steps from the shortest prompt, the longest, and one that fills the reach of this call.
        """
        ordered = sorted((row.ids for row in rows), key=len)
        reach = max(row.reach for row in rows)
        filled = (ordered[-1] * (reach // len(ordered[-1]) + 1))[: max(len(ordered[-1]), reach - TRIED)]
        steps = max(1, min(TRIED, reach - len(filled) + 1))
        prompts = [filled, ordered[0], ordered[-1]]
        trial = replace(self, stop=set(), choose=None, told=None)
        trials = [Row(list(prompt), [], steps) for prompt in prompts]
        try:
            with last_position_only(self.loaded.model):
                seen, size = trial._padded_trial(trials) if way == "padded" else trial._even_trial(trials)
        except UnfitError:
            return None
        fits = all(
            near(logits, self._whole(row)[len(row.prompt) - 1 :][: len(logits)], rounding(self.loaded))
            for row, logits in zip(trials, seen, strict=True)
        )
        return size if fits else None

    def _padded_trial(self, rows: list[Row]) -> tuple[list[Tensor], int]:
        """The logits [steps, V] of each row: two begin together, the third takes the first's place after half the steps."""
        seen: dict[int, list[Tensor]] = {id(row): [] for row in rows}

        def keep(flock: Flock) -> Flock:
            for row, logits, token in zip(flock.rows, flock.logits, flock.token.tolist(), strict=True):
                if row.growing:
                    seen[id(row)].append(logits)
                    row.new.append(token)
            return flock

        flock = keep(self.begin(rows[:2]))
        size = cache_bytes(flock.cache) // max(1, flock.mask.numel())
        for _ in range(1, max(1, rows[0].room // 2)):
            flock = keep(self.step(flock))
        flock = flock.only([1])
        late = keep(self.begin(rows[2:]))
        flocks = [join(flock, late)] if joins(flock.cache) else [flock, late]
        for flock in flocks:
            while any(row.growing for row in flock.rows):
                flock = keep(self.step(flock))
        return [torch.stack(seen[id(row)]) for row in rows], size

    def _even_trial(self, rows: list[Row]) -> tuple[list[Tensor], int]:
        """The logits [steps, V] of each row, each beside one of its length with other tokens."""
        seen = []
        for row in rows:
            beside = Row(row.prompt[::-1], [], row.room)
            steps = self._in_step([beside, row], cached=True, steps=row.room)
            seen.append(torch.stack([logits[1] for logits in steps]))
        return seen, 0

    def _likeliest(self, rows: list[Row]) -> bool:
        """Whether the tokens of a few texts, the longest among them, are the likeliest by a pass over the whole text."""
        ordered = sorted(rows, key=lambda row: len(row.ids))
        for row in {id(row): row for row in [*ordered[-1:], *ordered[: TRIED - 1]]}.values():
            logits = self._whole(row)[len(row.prompt) - 1 :]
            written = logits[torch.arange(len(row.new)), torch.tensor(row.new, dtype=torch.long, device=logits.device)]
            if row.ended:
                written = torch.cat([written, logits[-1, sorted(self.stop)].max().unsqueeze(0)])
            lead = logits[: len(written)].max(-1).values - written
            if not bool((lead <= bound(logits, rounding(self.loaded))).all()):
                return False
        return True

    def _whole(self, row: Row) -> Tensor:
        """The logits [T, V] in fp32 of one pass over a row's tokens, without cache, padding or positions.

        The last token of a row that has not ended was chosen but is not read: it may lie beyond the model's positions.
        """
        model = self.loaded.model
        read = row.ids[:-1] if row.new and not row.ended else row.ids
        ids = torch.tensor([read], device=next(model.parameters()).device)
        return model(input_ids=ids, **settings_of(model), use_cache=False).logits[0, -len(read) :].float()


def _alike(loaded: Loaded, rows: list[Row]) -> list[list[Row]]:
    """Rows that the model reads with the same positions: within its border, across it, and beyond (see probes.border)."""
    limit = border(inner(loaded.model).config)
    if limit is None:
        return [rows] if rows else []
    groups: dict[tuple[bool, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((len(row.ids) > limit, row.reach > limit), []).append(row)
    return list(groups.values())


def near(found: Tensor, expected: Tensor, eps: float) -> bool:
    """Whether logits [T, V] are the same but for rounding to `eps`."""
    finite = expected.isfinite()
    difference = (found - expected).abs()[finite].amax() if bool(finite.any()) else torch.zeros(())
    return found.shape == expected.shape and bool(difference <= bound(expected, eps))


def bound(logits: Tensor, eps: float) -> float:
    """How far logits may differ by rounding alone."""
    finite = logits[logits.isfinite()]
    return max(1e-4, 4 * eps) * max(1.0, float(finite.abs().max()) if finite.numel() else 1.0)
