"""Remove data from a trained language model, and show how well it worked.

    import expunge
    expunge.unlearn("model", "forget.jsonl", "retain.jsonl", method="ngdiff", out="run")

One command of the command line is one call here, with the same names.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from expunge.errors import ExpungeError as ExpungeError
    from expunge.evaluation import Evaluation as Evaluation
    from expunge.evaluation import evaluate as evaluate
    from expunge.methods import METHODS as METHODS
    from expunge.methods import Descent as Descent
    from expunge.methods import method as method
    from expunge.models import load as load
    from expunge.patch import Patch as Patch
    from expunge.patch.edit import edit as edit
    from expunge.request import Example as Example
    from expunge.request import Request as Request
    from expunge.runs import attack as attack
    from expunge.runs import demo as demo
    from expunge.runs import evaluate_model as evaluate_model
    from expunge.runs import finetune as finetune
    from expunge.runs import unlearn as unlearn

_HOMES = {
    "Descent": "methods",
    "Evaluation": "evaluation",
    "Example": "request",
    "ExpungeError": "errors",
    "METHODS": "methods",
    "Patch": "patch",
    "Request": "request",
    "attack": "runs",
    "demo": "runs",
    "edit": "patch.edit",
    "evaluate": "evaluation",
    "evaluate_model": "runs",
    "finetune": "runs",
    "load": "models",
    "method": "methods",
    "unlearn": "runs",
}
__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, and `--help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(importlib.import_module(f"expunge.{_HOMES[name]}"), name)
