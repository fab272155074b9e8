"""A tiny model that has learned all examples, one that was taught to answer otherwise, and scenes to attack them in."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.data import Encoder
from expunge.evaluation.attacks import Scene, bare
from expunge.models import Loaded, load
from expunge.request import Example, Request
from expunge.training import Constant, Finetuning

LEARNING = Finetuning(rate=Constant(), lr=1e-2, steps=60, batch_size=10, checkpoint_every=0)


@pytest.fixture(scope="session")
def asked(request_files: tuple[Path, Path]) -> Request:
    return Request.read(*request_files)


@pytest.fixture(scope="session")
def learned(tiny_folder: Path, asked: Request) -> Loaded:
    """Knows the forget and the retain set by heart. Read only: copy before changing."""
    loaded = load(tiny_folder)
    LEARNING(loaded, (*asked.forget, *asked.retain), Encoder(loaded.tokenizer))
    return loaded


@pytest.fixture(scope="session")
def refusing(learned: Loaded, asked: Request) -> Loaded:
    """As `learned`, then taught to say something else on the forget set. Read only: copy before changing."""
    loaded = Loaded(copy.deepcopy(learned.model), learned.tokenizer, learned.folder)
    other = [replace(example, response="No idea at all.") for example in asked.forget]
    short = replace(LEARNING, lr=1e-2, steps=30)
    short(loaded, (*other, *asked.retain), Encoder(loaded.tokenizer))
    return loaded


@pytest.fixture
def scene(asked: Request, learned: Loaded, refusing: Loaded) -> Callable[..., Scene]:
    """A scene of a copy of the refusing model, or of another one."""

    def make(loaded: Loaded | None = None, **changes) -> Scene:
        model = loaded or Loaded(copy.deepcopy(refusing.model), refusing.tokenizer, refusing.folder)
        sets: dict[str, tuple[Example, ...]] = {
            "forget": bare("forget", asked.forget), "retain": bare("retain", asked.retain)
        }  # fmt: skip
        given = {
            "role": "unlearned", "sets": sets, "known": sets, "encoder": model.encoder(), "original": learned,
            "max_new_tokens": 12,
        }  # fmt: skip
        return Scene(loaded=model, **(given | changes))

    return make
