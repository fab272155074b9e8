"""Corpora: every token of a text in exactly one chunk, nothing padded, the end marked once."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data import Encoder, collate
from expunge.data.corpus import chunks, cut_request, read_corpus
from expunge.errors import ConfigurationError
from expunge.models import Loaded, load
from expunge.models.loading import open_encoder
from expunge.request import Example, Request

LINE = "Ada Lome mends clocks.\n\n“Unforgettable,” said Bo Hurst — naïve, {} ships… 🦆 and\tno   goose. "
BOOK = "".join(LINE.format(number) for number in range(9))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    return path


def test_every_token_once_and_the_end_at_the_end(tiny: Loaded, book: Path) -> None:
    encoder = Encoder(tiny.tokenizer, max_length=64)
    whole = tiny.tokenizer(BOOK)["input_ids"]
    eos = tiny.tokenizer.eos_token_id
    found = read_corpus(book, encoder, tokens=32)
    items = encoder.examples(found)
    assert [token for item in items for token in item.ids] == [*whole, eos]
    assert [len(item) for item in items[:-1]] == [32] * (len(items) - 1)
    assert len(items[-1]) == (len(whole) + 1) % 32
    assert [item.ended for item in items] == [False] * (len(items) - 1) + [True]
    assert all(item.start == 1 and not item.cut for item in items)
    assert [example.id for example in found[:2]] == ["book/0", "book/1"]
    assert found[1].where == f"{book} (chunk 1)"
    batch = collate(items, pad=eos)
    assert batch.labels.tolist() == [token for item in items for token in item.ids[1:]]


def test_a_beginning_token_stands_before_every_chunk(shared_data: Path, book: Path) -> None:
    """SentencePiece, with <s>: a chunk has one token of the text fewer, and all of them are labelled."""
    encoder = open_encoder(shared_data / "stories260K", 4096)
    assert encoder.max_length == 512  # the model's positions
    tokenizer = encoder.tokenizer
    begin, *whole = tokenizer(BOOK)["input_ids"]
    items = encoder.examples(read_corpus(book, encoder, tokens=40))
    assert {item.ids[0] for item in items} == {begin} == {tokenizer.bos_token_id}
    assert [token for item in items for token in item.labels] == [*whole, tokenizer.eos_token_id]
    assert {len(item) for item in items[:-1]} == {40}
    again = [tokenizer(example.response)["input_ids"] for example in read_corpus(book, encoder, tokens=40)]
    changed = sum(ids[1:40] != list(item.ids[1:40]) for ids, item in zip(again, items, strict=True))
    assert changed > len(items) / 2  # this is why a chunk keeps its tokens


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1).filter(str.strip), size=st.integers(4, 20))
def test_no_token_is_lost_whatever_the_text(tiny_folder: Path, text: str, size: int) -> None:
    encoder = open_encoder(tiny_folder, 64)
    _, tokens = encoder.whole_text(text)
    found = chunks([Example(prompt="", response=text)], encoder, size)
    if len(tokens) <= size:
        assert found == [Example(prompt="", response=text)]
        return
    assert tuple(token for example in found for token in example.tokens) == tokens
    lengths = [len(example.tokens) for example in found]
    assert set(lengths[:-2]) <= {size}
    assert lengths[-2:] == [size - 1, 2] if len(tokens) % size == 1 else lengths[-2] == size
    assert all(example.tokens == item.ids for example, item in zip(found, encoder.examples(found), strict=True))


def test_special_tokens_written_in_a_book_are_words(tiny: Loaded) -> None:
    encoder = Encoder(tiny.tokenizer, max_length=16)
    items = encoder.examples(chunks([Example(prompt="", response="Ada </s> mends </s> clocks. " * 10)], encoder))
    eos = tiny.tokenizer.eos_token_id
    assert [item.ids.count(eos) for item in items] == [0] * (len(items) - 1) + [1]
    assert "</s>" in tiny.tokenizer.decode(items[0].ids)


def test_another_tokenizer_spells_the_text_itself(tiny: Loaded, shared_data: Path) -> None:
    mine = Encoder(tiny.tokenizer, max_length=32)
    chunk = chunks([Example(prompt="", response="She mends old clocks. " * 20)], mine)[1]
    other = load(shared_data / "stories260K", device="cpu").encoder()
    assert other.example(chunk).ids[1:-1] == tuple(other.tokenizer(chunk.response)["input_ids"][1:])
    assert mine.example(chunk).ids == chunk.tokens
    _, *rest = tiny.tokenizer("No.")["input_ids"]
    assert mine.pair(chunk, "", "No.").labels == (*rest, tiny.tokenizer.eos_token_id)


def test_folders_and_lines_of_text(tiny: Loaded, tmp_path: Path) -> None:
    encoder = Encoder(tiny.tokenizer, max_length=16)
    (tmp_path / "b.txt").write_text("He paints ships. " * 20)
    lines = [{"text": "Short."}, {"text": "Una teaches in Selm. " * 9}, {"prompt": "Who?", "response": "Una."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "notes.md").write_text("not data")
    found = read_corpus(tmp_path, encoder, tokens=16)
    assert (found[0].response, found[0].tokens) == ("Short.", ())
    assert any(example.prompt == "Who?" for example in found)
    assert found[-1].id.startswith("b/")
    assert read_corpus(tmp_path, encoder, tokens=16, limit=3) == found[:3]
    for settings_ in ({"tokens": 3}, {"tokens": 17}, {"tokens": 16, "limit": 0}):
        with pytest.raises(ConfigurationError, match="at least"):
            read_corpus(tmp_path, encoder, **settings_)


def test_a_request_says_what_was_cut_and_is_cut_once(tiny: Loaded, small_request: Request, book: Path) -> None:
    encoder = Encoder(tiny.tokenizer, max_length=32)
    assert cut_request(small_request, encoder) is small_request
    text = Example(prompt="", response=BOOK)
    corrected = Example(prompt="", response=BOOK + "more", new_response="Nothing.")
    request = cut_request(Request((text, corrected), small_request.retain), encoder)
    assert request.forget[-1] == corrected
    assert request.warnings == (
        f"forget: 1 running text(s) were cut into {len(request.forget) - 1} chunks of at most 32 tokens",
    )
    assert cut_request(request, encoder) is request
    assert all(one.tokens != two.tokens for one, two in pairwise(request.forget[:-1]))
