"""What is wrong with a written text that no comparison with the right answer sees: pure functions of texts.

A score of the forget set that got better because the model writes nonsense, nothing, or only "I do not know" is no
forgetting; these say so without a downloaded classifier.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from expunge.evaluation.metrics.languages import NAMES, REFUSALS, language
from expunge.evaluation.metrics.words import fold, unspaced, words

ORDER = 4  # words in a run
LEAST_WORDS = 8  # below, a repeated run says nothing
BROKEN = 0.5  # share of runs repeated, or of words unlike words, from which a text is no language
RANDOM = 0.75  # of log V: mean NLL from which a text is hardly likelier than tokens drawn at random
LONGEST_WORD = 25
PUNCTUATION = "-–—.,;:!?&/…'\"“”‘’()"
LATIN = 0x24F  # the last letter of the extended Latin alphabets


def repetition(texts: Sequence[str], order: int = ORDER) -> np.ndarray:
    """1 − distinct / all runs of `order` words, whatever their case: [n]. 0 for a text of fewer words. Lower is better.

    Words are those of `metrics.words`: characters where a script does not separate words.
    Source: seq-rep-4 of Welleck et al. 2020.
    """
    shares = []
    for text in texts:
        spoken = words(text)
        runs = [tuple(spoken[start : start + order]) for start in range(len(spoken) - order + 1)]
        shares.append(1 - len(set(runs)) / len(runs) if runs else 0.0)
    return np.array(shares)


def refusal(texts: Sequence[str]) -> np.ndarray:
    """1 where a text has one of its language's phrases of refusal, whatever its case and apostrophes: [n].

    NaN where a text's language has no such list (see `metrics.languages`). Neither good nor bad on the forget set, where
    the retrained model makes something up instead; bad on a set that must stay.
    """
    return np.array([_refuses(text) for text in texts])


def _refuses(text: str) -> float:
    tongue, plain = language(text), _plain(text)
    if any(phrase in plain for phrase in REFUSALS["en"]):
        return 1.0
    if tongue not in REFUSALS:
        return float("nan")
    return float(any(_plain(phrase) in plain for phrase in REFUSALS[tongue]))


def unjudged(texts: Sequence[str]) -> list[str]:
    """What cannot be said of some of these texts, for their language's sake: ends of sentences."""
    told = []
    unknown = sum(np.isnan(_refuses(text)) for text in texts)
    if unknown:
        told.append(
            f"{unknown} of {len(texts)} answers are in a language without a list of refusals, so refusals leave them out "
            f"(lists: {', '.join(NAMES[code] for code in REFUSALS)})"
        )
    other = sum(any(ord(character) > LATIN for character in text if character.isalpha()) for text in texts)
    if other:
        told.append(
            f"{other} of {len(texts)} answers have letters other than Latin ones: whether these form words is not judged, "
            "so gibberish there is repetition alone, and what the original model finds unlikely"
        )
    return told


def empty(texts: Sequence[str]) -> np.ndarray:
    """1 where a text has no letter and no digit: [n]. Lower is better."""
    return np.array([float(not any(character.isalnum() for character in text)) for text in texts])


def gibberish(texts: Sequence[str], nll: np.ndarray | None = None, vocabulary: int = 0) -> np.ndarray:
    """1 where a text that is not empty is no language: [n]. Lower is better.

    That is, more than half of its runs of four words are repeated (in a text of at least 8 words), or more than half of
    its words are not word-like. nll: [n] the mean NLL per token that a sound model gives each text, in nats, of
    `vocabulary` tokens: from ¾ of log(vocabulary) on a text counts as gibberish too; NaN where it was not scored.
    """
    rows = zip(texts, repetition(texts), empty(texts), strict=True)
    broken = np.array([not nothing and (_looped(text, rate) or _garbled(text)) for text, rate, nothing in rows])
    if nll is not None:
        with np.errstate(invalid="ignore"):
            broken = broken | ((np.asarray(nll) >= RANDOM * np.log(vocabulary)) & (empty(texts) == 0))
    return broken.astype(np.float64)


def _looped(text: str, repeated: float) -> bool:
    return len(words(text)) >= LEAST_WORDS and repeated > BROKEN


def _garbled(text: str) -> bool:
    parts = unicodedata.normalize("NFC", text).split()
    return sum(not _word_like(part) for part in parts) > BROKEN * len(parts)


def _word_like(part: str) -> bool:
    """Letters in one piece (joined by - ' ’ . / at most), or a number; not endless, not one letter over and over.

    A capital within a word and figures within it are what pieces of words glued together show. Scripts other than the
    Latin one are taken as they are.
    """
    core = re.sub(r"^\W+|\W+$", "", part)
    if not core:
        return all(character in PUNCTUATION or _foreign_mark(character) for character in part)
    if unspaced(core):
        return True
    if re.search(r"(.)\1{3}", core):
        return False
    if any(ord(character) > LATIN for character in core if character.isalpha()):
        return True
    if len(core) > LONGEST_WORD:
        return False
    if re.fullmatch(r"[\d.,:/×x%-]+(st|nd|rd|th|s|m|km|kg|pm|am)?", core, re.IGNORECASE):
        return True
    return all(_piece(piece) for piece in re.split(r"[-'’./&–—]", core) if piece)


def _foreign_mark(character: str) -> bool:
    """Whether this is punctuation of another script than the Latin one, such as "。" or "।"."""
    general = 0x2000 <= ord(character) <= 0x206F
    return ord(character) > LATIN and not general and unicodedata.category(character).startswith("P")


def _piece(piece: str) -> bool:
    if not piece.isalnum():
        return False
    if any(character.isdigit() for character in piece):
        return len(piece) <= 6
    return piece.isupper() or piece.islower() or piece[1:].islower() or piece[:2] == "Mc"


def _plain(text: str) -> str:
    return " ".join(fold(text.replace("’", "'")).split())
