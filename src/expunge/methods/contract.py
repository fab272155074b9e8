"""What a method is: a frozen dataclass of settings, called with a model, a request and a context."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from expunge.data import Encoder
from expunge.identity import Identity
from expunge.models import Loaded
from expunge.request import Example, Request
from expunge.training import History
from expunge.training.loop import Progress


@dataclass(frozen=True)
class Context:
    """What a method needs besides the model and the request: how to encode, where to checkpoint, whom to notify.

    identity: what a run must share with a checkpoint to go on from it, besides what the training itself compares.
    chunk_tokens: how long the pieces of a longer running text are, where a method reads a file; default: `max_length`.
    """

    encoder: Encoder
    checkpoint: Path | None = None
    resume: bool = False
    progress: Progress | None = None
    chunk_tokens: int | None = None
    identity: Identity = Identity()


class Method(Protocol):
    """Makes `loaded.model` forget, in place. Its fields are its settings; one of them is `seed`."""

    @property
    def seed(self) -> int: ...

    def __call__(self, loaded: Loaded, request: Request, context: Context) -> History:
        """Change the trainable parameters, and tell what happened."""
        ...


def tuned_on(method: Method, request: Request) -> tuple[Example, ...]:
    """The examples of the request on which a method would choose settings of its own; none for most methods."""
    chosen = getattr(method, "tuned_on", None)
    return tuple(chosen(request)) if chosen is not None else ()
