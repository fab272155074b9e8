"""Holding a run's output from its first check to its last byte (see `expunge.outputs`)."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from expunge import config
from expunge.models.sources import in_settings, is_described, sources, weight_bytes
from expunge.outputs import reserved

P = ParamSpec("P")
T = TypeVar("T")
Arguments = dict[str, Any]
MODELS = {"model", "original", "reference", "source"}  # parameters that name a model


@dataclass(frozen=True)
class Output:
    """What a run writes: its path, the files beside it, and whether it changes a file that exists (see `reserved`).

    continues: it takes the place of what is there without being asked to overwrite, since it holds all of it.
    """

    path: Path
    beside: tuple[Path, ...] = ()
    update: bool = False
    continues: bool = False


def at_out(asked: Arguments) -> Output:
    """The output of most runs: `out` alone."""
    return Output(Path(asked["out"]))


def with_report(asked: Arguments) -> Output:
    """A results file `out` with its report beside it."""
    out = Path(asked["out"])
    return Output(out, (out.with_suffix(".html"), out.with_suffix(".md")) if asked["report"] else ())


def full_models(asked: Arguments) -> int:
    """How many copies of the whole model a training run writes: none if it trains a new adapter."""
    return 0 if asked.get("lora") else 1


def writes(
    *inputs: str,
    folder: bool,
    where: Callable[[Arguments], Output] = at_out,
    copies: Callable[[Arguments], int] | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a run hold its output before it does anything else.

    inputs: the parameters that name what the run reads; settings and a method's or mask's own fields count as well.
    folder: whether the output is a folder. where: the output, by the run's arguments. copies: how many copies of the
    weights of `model` the output holds at least, by the run's arguments.
    """

    def decorate(run: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(run)

        @functools.wraps(run)
        def held(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            asked = bound.arguments
            output = where(asked)
            with reserved(
                output.path,
                inputs=list(_read(asked, inputs, weights_only=not folder)),
                folder=folder,
                overwrite=asked["overwrite"] or output.continues,
                beside=output.beside,
                update=output.update,
                room=copies(asked) * weight_bytes(asked["model"]) if copies is not None else 0,
            ) as target:
                if where is at_out:
                    asked["out"] = target
                return run(*bound.args, **bound.kwargs)

        return held

    return decorate


def _read(asked: Arguments, names: Iterable[str], *, weights_only: bool) -> Iterable[Path]:
    for name in names:
        for path in sources(asked.get(name), weights_only=weights_only):
            if name not in MODELS or not path.is_dir() or is_described(path):  # else loading says that it is no model
                yield path
    yield from in_settings(asked.get("settings") or {})
    for part in (asked.get("method"), asked.get("loss")):
        if part is not None and not isinstance(part, str):
            yield from in_settings(config.to_dict(part))
