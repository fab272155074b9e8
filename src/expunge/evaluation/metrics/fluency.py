"""What is wrong with a written text that no comparison with the right answer sees: pure functions of texts.

A score of the forget set that got better because the model writes nonsense, nothing, or only "I do not know" is no
forgetting; these say so without a downloaded classifier.
"""

import re
from collections.abc import Sequence

import numpy as np

ORDER = 4  # words in a run
LEAST_WORDS = 8  # below, a repeated run says nothing
BROKEN = 0.5  # share of runs repeated, or of words unlike words, from which a text is no language
RANDOM = 0.75  # of log V: mean NLL from which a text is hardly likelier than tokens drawn at random
LONGEST_WORD = 25
PUNCTUATION = "-–—.,;:!?&/…'\"“”‘’()"
LATIN = 0x24F  # the last letter of the extended Latin alphabets

# phrases in which models and the field's refusal data sets decline to answer or say that they do not know
REFUSALS = (
    "i don't know", "i do not know", "i'm not sure", "i am not sure", "i have no idea", "i'm not certain",
    "i don't have", "i do not have", "i have no information", "i have no knowledge", "i'm not aware", "i am not aware",
    "i'm unaware", "i am unaware", "i'm not familiar", "i am not familiar", "i'm unfamiliar", "i can't", "i cannot",
    "i can not", "i couldn't", "i could not", "i'm unable", "i am unable", "i'm not able", "i am not able",
    "i won't", "i will not", "i'm sorry", "i am sorry", "i apologize", "i apologise", "sorry, but", "as an ai",
    "as a language model", "no information", "not in my knowledge", "not within my knowledge", "beyond my knowledge",
    "outside my knowledge", "unknown to me", "i'm afraid", "i am afraid", "i haven't", "i have not", "i've no ",
    "i'm drawing a blank", "i lack ", "that's not something i", "is not something i", "isn't something i",
)  # fmt: skip


def repetition(texts: Sequence[str], order: int = ORDER) -> np.ndarray:
    """1 − distinct / all runs of `order` words, whatever their case: [n]. 0 for a text of fewer words. Lower is better.

    Source: seq-rep-4 of Welleck et al. 2020.
    """
    shares = []
    for text in texts:
        words = _words(text)
        runs = [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
        shares.append(1 - len(set(runs)) / len(runs) if runs else 0.0)
    return np.array(shares)


def refusal(texts: Sequence[str]) -> np.ndarray:
    """1 where a text has one of the phrases REFUSALS, whatever its case and apostrophes: [n].

    English only. Neither good nor bad on the forget set, where the retrained model makes something up instead; bad on a
    set that must stay.
    """
    return np.array([float(any(phrase in _plain(text) for phrase in REFUSALS)) for text in texts])


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
    return len(_words(text)) >= LEAST_WORDS and repeated > BROKEN


def _garbled(text: str) -> bool:
    parts = text.split()
    return sum(not _word_like(part) for part in parts) > BROKEN * len(parts)


def _word_like(part: str) -> bool:
    """Letters in one piece (joined by - ' ’ . / at most), or a number; not endless, not one letter over and over.

    A capital within a word and figures within it are what pieces of words glued together show. Scripts other than the
    Latin one are taken as they are.
    """
    core = re.sub(r"^\W+|\W+$", "", part)
    if not core:
        return all(character in PUNCTUATION for character in part)
    if re.search(r"(.)\1{3}", core):
        return False
    if any(ord(character) > LATIN for character in core if character.isalpha()):
        return True
    if len(core) > LONGEST_WORD:
        return False
    if re.fullmatch(r"[\d.,:/×x%-]+(st|nd|rd|th|s|m|km|kg|pm|am)?", core, re.IGNORECASE):
        return True
    return all(_piece(piece) for piece in re.split(r"[-'’./&–—]", core) if piece)


def _piece(piece: str) -> bool:
    if not piece.isalnum():
        return False
    if any(character.isdigit() for character in piece):
        return len(piece) <= 6
    return piece.isupper() or piece.islower() or piece[1:].islower() or piece[:2] == "Mc"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _plain(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())
