"""A fine-tuning set and what a request does to it: which instances leave, which change, which stay."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from expunge.data.corpus import chunks
from expunge.data.encoding import Encoder
from expunge.errors import RequestError
from expunge.request import Example, Paths, Request, paths_of, read_examples


@dataclass(frozen=True)
class Edited:
    """n instances, of which those in `before` turn into those in `after` (None: removed), and `kept` stay."""

    before: tuple[Example, ...]
    after: tuple[Example | None, ...]
    kept: tuple[Example, ...]

    @classmethod
    def of(
        cls, request: Request, encoder: Encoder, train: Paths | None = None, chunk_tokens: int | None = None
    ) -> "Edited":
        """Forget and retain set together are the fine-tuning set, or `train` is: files that hold every forget example.

        An instance that stands there several times is edited each time. Running text in `train` is cut into chunks of
        `chunk_tokens` tokens (default: `max_length`), as the request's is. Raises RequestError if there is neither a
        retain set nor `train`, if an example to forget is not in `train` (the nearest one is shown), or if nothing
        would be left.
        """
        check_known(request, train)
        if train is None:
            return cls(request.forget, tuple(example.after for example in request.forget), request.retain)
        wanted = {example.key: example for example in request.forget}
        whole = chunks(read_examples(train), encoder, chunk_tokens)
        _all_known(request.forget, whole, train)
        before = tuple(example for example in whole if example.key in wanted)
        after = tuple(wanted[example.key].after for example in before)
        made = cls(before, after, tuple(example for example in whole if example.key not in wanted))
        if not made.now:
            raise RequestError(f"Nothing would be left of {_paths(train)}: delete the adapter instead.")
        return made

    @property
    def whole(self) -> tuple[Example, ...]:
        """The fine-tuning set as it was: n instances."""
        return self.before + self.kept

    @property
    def now(self) -> tuple[Example, ...]:
        """The fine-tuning set as it shall be."""
        return tuple(example for example in self.after if example is not None) + self.kept

    @property
    def share(self) -> float:
        """|S|/n: the share of instances that are removed or changed."""
        return len(self.before) / len(self.whole)


def check_known(request: Request, train: Paths | None) -> None:
    """Raise RequestError where neither a retain set nor `train` says what the adapter was trained on."""
    if train is None and not request.retain:
        raise RequestError(
            "The fine-tuning set is missing: this method needs every instance the adapter learned. Give those that stay "
            "as --retain, or the file it was trained on as --set train=FILE."
        )


def _all_known(forget: Sequence[Example], whole: Sequence[Example], train: Paths) -> None:
    known = {example.key for example in whole}
    missing = [example for example in forget if example.key not in known]
    if not missing:
        return
    texts = {" ".join(example.key): example for example in whole}
    near = difflib.get_close_matches(" ".join(missing[0].key), texts, n=1, cutoff=0.4)
    nearest = f"The nearest there is {_shown(texts[near[0]])}." if near else "Nothing there is like it."
    raise RequestError(
        f"{len(missing)} of {len(forget)} examples to forget are not in the fine-tuning set {_paths(train)}. The first is "
        f"{_shown(missing[0])}. {nearest} Only what the adapter was trained on can be taken out of it: give the "
        "instance as it stands there, or leave it out."
    )


def _paths(paths: Paths) -> str:
    return ", ".join(str(path) for path in paths_of(paths))


def _shown(example: Example) -> str:
    place = " ".join(part for part in (example.where, example.id and f"id {example.id}") if part)
    words = " → ".join(text[:80] for text in (example.prompt, example.response) if text)
    return f"{place} ({words!r})" if place else repr(words)
