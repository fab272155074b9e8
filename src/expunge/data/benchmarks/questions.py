"""Multiple-choice questions, and how they are put to a model: the prompts the field's harness uses for WMDP and MMLU."""

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.errors import RequestError

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its options, and the index of the right one. `subject` is in words; `where` is "file:place".

    Raises RequestError, naming `where`, for fewer than two options, an empty text or an answer that is no option.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""
    where: str = ""

    def __post_init__(self) -> None:
        texts = (self.question, *self.choices)
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise RequestError(f"{self.where}: the question and each of its choices must be text that is not empty.")
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise RequestError(f"{self.where}: {len(self.choices)} choices; give 2 to {len(LETTERS)}.")
        if isinstance(self.answer, bool) or not isinstance(self.answer, int):
            raise RequestError(f"{self.where}: answer must be the index of a choice, found {self.answer!r}.")
        if not 0 <= self.answer < len(self.choices):
            raise RequestError(
                f"{self.where}: answer {self.answer} is out of range: the choices are numbered 0 to "
                f"{len(self.choices) - 1}."
            )


def letter_prompt(question: Question, shots: Sequence[Question] = ()) -> str:
    """The question with its options below it, after an introduction and the `shots` with their answers.

    The answer to it is " A", " B", ... (Hendrycks et al. 2021; the harness's `mmlu` and `wmdp` tasks.)
    """
    intro = f"The following are multiple choice questions (with answers){_about(question)}.\n\n"
    solved = [f"{_listed(shot)} {LETTERS[shot.answer]}\n\n" for shot in shots]
    return "".join([intro, *solved, _listed(question)])


def text_prompt(question: Question, shots: Sequence[Question] = ()) -> str:
    """The question without its options; the answer to it is a space and the text of an option."""
    intro = f"The following are questions (with answers){_about(question)}.\n\n"
    solved = [f"{_asked(shot)} {shot.choices[shot.answer].strip()}\n\n" for shot in shots]
    return "".join([intro, *solved, _asked(question)])


def _about(question: Question) -> str:
    return f" about {question.subject}" if question.subject else ""


def _listed(question: Question) -> str:
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.choices, strict=False))
    return f"{question.question.strip()}\n{options}Answer:"


def _asked(question: Question) -> str:
    return f"Question: {question.question.strip()}\nAnswer:"
