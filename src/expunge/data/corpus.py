"""Plain-text corpora: books and articles cut into chunks by tokens, so that none of it is lost and none is padding.

A text is split into tokens once, as a whole, and the chunks are pieces of that one sequence. A chunk keeps its token ids
(`Example.tokens`): its text alone would not always be split the same way, since a border may stand within a word, a
character of several bytes, or before a space that a tokenizer writes differently at the beginning of a text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

from expunge.data.encoding import Encoder, spelling
from expunge.data.template import Targets
from expunge.data.turns import earlier, left_over, units, without
from expunge.errors import ConfigurationError
from expunge.request import Example, Request, read_examples

LEAST = 4  # tokens of a chunk: a beginning token, one to see, one to predict, and one to lend to the chunk after it


def read_corpus(path: Path | str, encoder: Encoder, *, tokens: int = 512, limit: int | None = None) -> list[Example]:
    """The texts of a .txt file, of JSONL lines with `text`, or of a folder of such files, in chunks (see `chunks`).

    tokens: the length of a chunk; the default is that of the WHP task of WAGLE (arXiv 2410.17509, 200 chunks of 512).
    limit: the first so many chunks; None: all. Raises RequestError for files that cannot be read or understood,
    ConfigurationError if `tokens` is below 4 or above the encoder's `max_length`, or `limit` below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit must be at least 1, got {limit}.")
    return list(islice(_all(read_examples(path), encoder, tokens), limit))


def chunks(examples: Iterable[Example], encoder: Encoder, tokens: int | None = None) -> list[Example]:
    """The examples, one for each target turn (see `turns.units`), and every running text of more than `tokens` tokens
    (default: `max_length`) cut into chunks.

    A chunk is exactly `tokens` long, with the beginning token where the tokenizer sets one before a text; the last one
    holds the rest and, as any running text, the end-of-sequence token where the tokenizer has a beginning token. Each
    token of the text stands in exactly one chunk. Only where a single token would be left over does the chunk before
    lend it one more. Words like "</s>" in such a text are spelled out, not read as special tokens. Texts that fit, and
    all other examples, stay as they are.

    Raises ConfigurationError if `tokens` is below 4 or above `max_length`, beyond which tokens would be lost.
    """
    return list(_all(units(examples, encoder.wording.targets), encoder, tokens))


def target_request(request: Request, targets: Targets) -> Request:
    """The request with an example for each target turn, and warnings on what this leaves out.

    An earlier turn that the retain set has too (the same system prompt, mostly) is not forgotten.
    """
    note = left_over(request.forget, request.retain, targets)
    notes = [note] if note else []
    if targets == "last":
        return replace(request, warnings=(*request.warnings, *notes)) if notes else request
    staying = earlier(request.retain, targets) | {example.key for example in request.retain}
    rows = units(request.forget, targets)
    forget = without(rows, staying)
    if len(forget) < len(rows):
        notes.append(f"forget: {len(rows) - len(forget)} turn(s) are in the retain set too and are not forgotten")
    if any(example.context and example.kind != "remove" for example in request.forget):
        notes.append("forget: of conversations that are corrected or rewritten, only the last answer is a target")
    retain, holdout = units(request.retain, targets), units(request.holdout, targets)
    return replace(request, forget=forget, retain=retain, holdout=holdout, warnings=(*request.warnings, *notes))


def cut_request(request: Request, encoder: Encoder, tokens: int | None = None) -> Request:
    """The request with its long running texts in chunks (see `chunks`), and a warning that says so for each set."""
    sets, notes = {}, []
    for name in ("forget", "retain", "holdout"):
        before = getattr(request, name)
        sets[name] = tuple(_all(before, encoder, tokens))
        note = chunk_note(before, sets[name])
        notes += [f"{name}: {note}"] if note else []
    return replace(request, **sets, warnings=(*request.warnings, *notes)) if notes else request


def chunk_note(before: Iterable[Example], after: Iterable[Example]) -> str | None:
    """A sentence on how many texts were cut into how many chunks, or None if none was."""
    made = [example for example in after if example.tokens]
    kept = sum(map(_is_whole, before)) - sum(map(_is_whole, after))
    longest = max((len(example.tokens) for example in made), default=0)
    return f"{kept} running text(s) were cut into {len(made)} chunks of at most {longest} tokens" if kept else None


def holds_text(examples: Iterable[Example]) -> bool:
    """Whether any example is running text that may have to be cut."""
    return any(_is_plain(example) for example in examples)


def _all(examples: Iterable[Example], encoder: Encoder, tokens: int | None) -> Iterator[Example]:
    size = encoder.max_length if tokens is None else tokens
    if not LEAST <= size <= encoder.max_length:
        raise ConfigurationError(
            f"Chunks of {size} tokens: give at least {LEAST}, and at most max_length ({encoder.max_length} here)."
        )
    for example in examples:
        yield from _cut(example, encoder, size) if _is_plain(example) else [example]


def _is_plain(example: Example) -> bool:
    """Running text that is only to be learned or forgotten, and not cut already."""
    other = (example.new_response, example.paraphrased_response, *example.wrong_responses)
    return example.is_text and example.kind == "remove" and not example.tokens and not any(other)


def _is_whole(example: Example) -> bool:
    return example.is_text and not example.tokens


def _cut(example: Example, encoder: Encoder, size: int) -> Iterator[Example]:
    begin, tokens = encoder.whole_text(example.response)
    if len(begin) + len(tokens) <= size:
        yield example
        return
    step = size - len(begin)
    edges = [*range(0, len(tokens), step), len(tokens)]
    if edges[-1] - edges[-2] == 1:
        edges[-2] -= 1
    for number, (first, last) in enumerate(pairwise(edges)):
        ids = (*begin, *tokens[first:last])
        yield replace(
            example,
            response=spelling(encoder.tokenizer, ids),
            tokens=ids,
            id=f"{example.id}/{number}" if example.id else "",
            where=f"{example.where} (chunk {number})" if example.where else "",
        )
