"""Every method by its name on the command line. A method is a frozen dataclass called with (model, request, context)."""

from collections.abc import Mapping
from typing import Any

from expunge import config
from expunge.methods.descent import Context, Descent
from expunge.methods.dpo import DirectPreference
from expunge.methods.gradascent import GradAscent
from expunge.methods.graddiff import GradDiff
from expunge.methods.idk import PreferenceOptimisation
from expunge.methods.kl import KLMinimisation
from expunge.methods.ngdiff import NGDiff
from expunge.methods.npo import NegativePreference
from expunge.methods.scalarisation import StaticScalarisation
from expunge.methods.simnpo import SimpleNegativePreference

METHODS: dict[str, type[Descent]] = {
    "ngdiff": NGDiff,
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


def method(name: str, settings: Mapping[str, Any] | None = None) -> Descent:
    """The method called `name` with `settings` over its defaults. Raises ConfigurationError for unknown names."""
    return config.build(config.lookup(METHODS, name, "method"), settings or {})


def name_of(chosen: Descent) -> str:
    """A method's name in the table."""
    return next(name for name, kind in METHODS.items() if kind is type(chosen))


__all__ = ["METHODS", "Context", "Descent", "method", "name_of"]
