"""Weights that are no numbers: a model that holds NaN or infinity gives no answers, and no method can mend it."""

from torch import nn

from expunge.errors import ModelError

LARGEST = 1e18  # the square of a larger number overflows in fp32: norms, and the model's own, become infinite


def broken(model: nn.Module) -> str | None:
    """The name of the first parameter that holds NaN, infinity or a number beyond `LARGEST`, or None."""
    for name, param in model.named_parameters():
        if not param.is_meta and param.is_floating_point() and not bool((param.abs() < LARGEST).all()):
            return name
    return None


def check_weights(model: nn.Module, source: object) -> None:
    """Raise ModelError if a parameter of the model that was loaded from `source` holds NaN or infinity."""
    name = broken(model)
    if name is not None:
        raise ModelError(
            f"{source}: {name} holds NaN, infinite or overflowing values: the model is damaged. Get its weights again."
        )
