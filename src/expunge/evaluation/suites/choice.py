"""Examples with options as suites: recommendation as yes/no questions or among candidates, and any others."""

from pathlib import Path

from expunge.data.benchmarks import tallrec
from expunge.errors import RequestError
from expunge.evaluation.suites.suite import Choice, Suite, limit_note, subsample
from expunge.request import Example, read_examples


def recommendation(source: Path | str, *, limit: int | None = None) -> Suite:
    """Yes/no questions, scored by AUC: TALLRec's folder (`movie`, `book`) or file, or a JSONL file or folder of ours.

    `limit` keeps that many evenly spaced ones. Raises RequestError for what is not there or no yes/no question.
    """
    examples = tallrec.read(source)
    first = examples[0]
    options = (first.response, *first.wrong_responses)
    positive = next(option for option in options if tallrec.plain(option) == tallrec.YES)
    return _suite("recommendation", examples, limit, positive=positive)


def sequential(source: Path | str, *, limit: int | None = None, max_new_tokens: int = 32) -> Suite:
    """The next item among candidates, scored by HitRatio@1 and valid ratio of what is written, and by likelihood.

    source: JSONL whose `wrong_responses` are the other candidates, or a folder that holds it as test.jsonl.
    """
    return _suite("sequential", _with_options(source), limit, written=True, max_new_tokens=max_new_tokens)


def choice(source: Path | str, *, limit: int | None = None) -> Suite:
    """Questions whose right answer must be likelier than every one of its `wrong_responses`; `source` as `sequential`'s."""
    return _suite("choice", _with_options(source), limit)


def _suite(
    name: str,
    examples: tuple[Example, ...],
    limit: int | None,
    *,
    positive: str | None = None,
    written: bool = False,
    max_new_tokens: int = 32,
) -> Suite:
    asked = Choice(subsample(examples, limit), positive, written)
    notes = limit_note({name: examples}, limit)
    return Suite(name, {}, choices={name: asked}, max_new_tokens=max_new_tokens, notes=notes)


def _with_options(source: Path | str) -> tuple[Example, ...]:
    path = Path(source)
    if path.is_dir():
        if not (path / "test.jsonl").is_file():
            raise RequestError(f"{path} holds no test.jsonl. Give a file of examples with wrong_responses.")
        path = path / "test.jsonl"
    examples = read_examples(path)
    bare = next((example for example in examples if not example.wrong_responses), None)
    if bare is not None:
        raise RequestError(
            f"{bare.where}: no wrong_responses, so there is nothing to choose from. Add the other options."
        )
    return examples
