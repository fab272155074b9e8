"""The words of a text in any writing system.

A word is a run of letters, marks and digits where the script separates words; in scripts that do not (Chinese, Japanese,
Thai, Khmer, Lao, Burmese, …) each character is one, with its marks. The words of ASCII text are those of rouge-score.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import regex

PAIRED = ("Han", "Bopomofo", "Yi")  # a character is a syllable or more: two of them name something
SPELLED = (
    "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom",
    "Javanese", "Balinese",
)  # fmt: skip
# scripts whose words change at their end alone, so that a stem stands for a word
STEMMED = regex.compile(r"[\p{Latin}\p{Cyrillic}\p{Greek}\p{Armenian}\p{N}\p{M}_]+")
NAMED_MARKS = regex.compile("[™℠]")  # compatibility forms that would grow onto the word before them
IGNORED = regex.compile(r"[\p{Default_Ignorable_Code_Point}\N{ARABIC TATWEEL}]")
DIGIT = regex.compile(r"(?V1)[\p{Nd}--[0-9]]")


def _character(scripts: Sequence[str]) -> str:
    """The pattern (of regex's version 1) of one letter or digit of these scripts, with its marks.

    Thai and Lao write some vowels as letters, before or behind; they belong to their consonant.
    """
    names = "".join("\\p{scx=" + script + "}" for script in scripts)
    return r"[เ-ไເ-ໄ]?[[" + names + r"]&&[\p{L}\p{N}]]\p{M}*[ะาๅະາ]?"


UNSPACED = _character((*PAIRED, *SPELLED))
_SPACED = rf"(?:(?!{UNSPACED})[\p{{L}}\p{{N}}_]\p{{M}}*)+"
_WORD = regex.compile(rf"(?V1){UNSPACED}|{_SPACED}")
_UNSPACED = regex.compile(rf"(?V1){UNSPACED}")
_ONE_SCRIPT = "|".join("(?:" + _character([script]) + ")+" for script in SPELLED)
_RUN = regex.compile(
    rf"(?V1)(?P<two>(?:{_character(PAIRED)})+)"
    rf"|(?P<three>{_ONE_SCRIPT})|(?P<word>{_SPACED})"
)
_CHUNK = regex.compile(rf"(?V1){UNSPACED}(?:(?!{UNSPACED})[^\s\p{{L}}\p{{N}}])*|(?:(?!{UNSPACED})\S)+")


def fold(text: str) -> str:
    """Text without what only its spelling differs by: case, width, composition, invisible characters, kind of digits.

    NFKC-casefolded (Unicode 3.13), Arabic without tatweel, and decimal digits of every script as 0–9.
    """
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKC", NAMED_MARKS.sub(" ", text)).casefold()
    plain = IGNORED.sub("", unicodedata.normalize("NFKC", plain)).replace("i\N{COMBINING DOT ABOVE}", "i")
    return DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), plain)


def words(text: str) -> list[str]:
    """The words of a text, folded; "_" counts as a letter, as in a regular expression's \\w."""
    return _WORD.findall(fold(text))


def unspaced(text: str) -> bool:
    """Whether the text holds a letter of a script that does not separate words."""
    return not text.isascii() and _UNSPACED.search(text) is not None


def runs(text: str) -> Iterator[tuple[str, int]]:
    """The folded text's words, size 0, and runs of characters of one unspaced script, with how many make a term."""
    for match in _RUN.finditer(fold(text)):
        yield match[0], {"two": 2, "three": 3, "word": 0}[match.lastgroup or "word"]


def grams(run: str, size: int) -> list[str]:
    """All runs of `size` characters, with their marks, of a run; the run itself where it has no more."""
    characters = _UNSPACED.findall(run)
    return ["".join(characters[at : at + size]) for at in range(max(1, len(characters) - size + 1))]


def terms(text: str) -> list[str]:
    """What texts are compared by where order is left aside: words, and of unspaced scripts pairs or triples."""
    return [term for run, size in runs(text) for term in (grams(run, size) if size else [run])]


def ends(text: str) -> list[int]:
    """Where each piece of text between spaces ends; an unspaced script's characters are pieces too."""
    return [match.end() for match in _CHUNK.finditer(text)]


@cache
def stem(word: str) -> str:
    """A word without its ending: English for a–z (rouge-score's rule), Russian for Cyrillic, Korean particles."""
    if len(word) > 3 and word.isascii():
        return _porter().stem(word)
    if len(word) > 3 and regex.fullmatch(r"\p{Cyrillic}+", word):
        return _russian().stem(word)
    if regex.fullmatch(r"\p{Hangul}+", word):
        return KOREAN.sub("", word)
    return word


# what a Korean word ends in beside what it names; two syllables must remain
KOREAN = regex.compile(
    "(?<=..)(?:이었습니다|였습니다|입니다|이에요|예요|이다|에서는|에게서|에서|에게|으로|부터|까지|하고|은|는|이|가|을|를|에|의|로|와|과|도)$"
)


@cache
def _porter():
    from nltk.stem.porter import PorterStemmer  # nltk takes its time to import

    return PorterStemmer()


@cache
def _russian():
    from nltk.stem.snowball import SnowballStemmer

    return SnowballStemmer("russian")
