"""Every method by its name on the command line. A method is a frozen dataclass called with (model, request, context)."""

from collections.abc import Mapping
from typing import Any

from expunge import config
from expunge.attribution import ATTRIBUTIONS
from expunge.errors import ConfigurationError
from expunge.methods.contract import Context, Method, tuned_on
from expunge.methods.descent import Descent
from expunge.methods.dpo import DirectPreference
from expunge.methods.gradascent import GradAscent
from expunge.methods.graddiff import GradDiff
from expunge.methods.idk import PreferenceOptimisation
from expunge.methods.kl import KLMinimisation
from expunge.methods.llmeraser import LLMEraser
from expunge.methods.ngdiff import NGDiff
from expunge.methods.npo import NegativePreference
from expunge.methods.perta import PerTA
from expunge.methods.retrain_adapter import RetrainAdapter
from expunge.methods.scalarisation import StaticScalarisation
from expunge.methods.simnpo import SimpleNegativePreference
from expunge.methods.task_vector import TaskVector
from expunge.request import Request

METHODS: dict[str, type[Method]] = config.table(
    {
        "ngdiff": NGDiff,
        "perta": PerTA,
        "taskvector": TaskVector,
        "llmeraser": LLMEraser,
        "retrainadapter": RetrainAdapter,
        "gradascent": GradAscent,
        "graddiff": GradDiff,
        "scalarisation": StaticScalarisation,
        "kl": KLMinimisation,
        "npo": NegativePreference,
        "simnpo": SimpleNegativePreference,
        "idk": PreferenceOptimisation,
        "dpo": DirectPreference,
        "descent": Descent,
    }
)
PLANNED = ("altpo", "ceu", "flat", "pdu", "rmu", "satimp", "undial", "wga", "whp")


def method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method called `name` with `settings` over its defaults. Raises ConfigurationError for unknown names."""
    if config.canonical(name) in PLANNED:
        raise ConfigurationError(f"The method {name} is not in expunge yet. There are: {', '.join(METHODS)}.")
    return config.build(config.lookup(METHODS, name, "method"), settings or {})


def check(chosen: Method, request: Request, *, adapter: bool | None) -> None:
    """Raise what `chosen` would raise on this request, without a model. adapter: whether an adapter is
    changed; None: not known."""
    checked = getattr(chosen, "check", None)
    if checked is not None:
        checked(request, adapter=adapter)


def name_of(chosen: Method) -> str:
    """A method's name in the table, with "+" and its mask's where it has one: "npo", "npo+wagle"."""
    name = next(name for name, kind in METHODS.items() if kind is type(chosen))
    mask = getattr(chosen, "mask", None)
    return name if mask is None else f"{name}+{next(key for key, kind in ATTRIBUTIONS.items() if kind is type(mask))}"


__all__ = ["METHODS", "Context", "Descent", "Method", "TaskVector", "check", "method", "name_of", "tuned_on"]
