"""A person's own request as a suite: whatever it holds is measured, whatever it lacks is said."""

from collections.abc import Mapping, Sequence

from expunge.errors import ConfigurationError
from expunge.evaluation.suites.made import made_note, make_answers
from expunge.evaluation.suites.suite import Suite, limit_note, subsample
from expunge.request import Example, Request

OWN = ("forget", "replacement", "retain", "holdout")


def request_suite(
    request: Request,
    *,
    utility: Mapping[str, Sequence[Example]] | None = None,
    with_options: Sequence[str] = (),
    limit: int | None = None,
    prefix_tokens: int | None = None,
    max_new_tokens: int = 200,
    make_wrong_answers: bool = False,
) -> Suite:
    """The request's sets as a suite: forget, and retain and holdout where there are any.

    Corrected and rewritten examples also make a set `replacement`: what the model shall say from now on. `utility`:
    further named sets that must not suffer (general knowledge, say); they and retain make up `model_utility`, of
    probability, ROUGE-L recall and, where wrong answers are given, truth ratio. `with_options`: those of them whose
    probability is taken among the wrong answers. `limit` keeps that many evenly spaced examples of each set.

    Of running text, as the chunks of a book, the model is given `prefix_tokens` tokens (None: half) and has to go on:
    ROUGE-L compares what it writes with how the text goes on, extraction strength is of that part alone. Loss and
    perplexity are of the whole text.

    make_wrong_answers: of forget and retain examples without wrong answers, make them by template (see
    `expunge.evaluation.suites.made`), so that truth ratio and forget quality are there; a note says for how many.

    Raises ConfigurationError if a set in `utility` has the name of one of the request's own.
    """
    further = dict(utility or {})
    taken = [name for name in further if name in OWN]
    if taken:
        raise ConfigurationError(f"A further utility set cannot be called {taken[0]!r}: choose another name.")
    whole: dict[str, Sequence[Example]] = {
        "forget": request.forget,
        "replacement": request.replacements,
        "retain": request.retain,
        **further,
        "holdout": request.holdout,
    }
    whole = {name: examples for name, examples in whole.items() if examples or name in further}
    sets = {name: subsample(examples, limit) for name, examples in whole.items()}
    made: list[str | None] = []
    if make_wrong_answers:
        for name in ("forget", "retain"):
            if name in sets:
                sets[name], count = make_answers(sets[name], (*request.forget, *request.retain))
                made.append(made_note(name, count, len(sets[name])))
    return Suite(
        name="request",
        sets=sets,
        utility=tuple(name for name in ("retain", *further) if name in whole),
        with_options=tuple(with_options),
        prefix_tokens=prefix_tokens,
        max_new_tokens=max_new_tokens,
        notes=(*request.warnings, *limit_note(whole, limit), *(note for note in made if note)),
    )
