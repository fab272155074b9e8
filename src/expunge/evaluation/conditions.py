"""How a model was measured, so that numbers are compared only where both models were asked the same in the same way."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter, ValidationError

from expunge.data import Encoder
from expunge.errors import ConfigurationError
from expunge.evaluation.measure import Plan
from expunge.models import Loaded

NAMED = {
    "max_length": "--max-length",
    "max_new_tokens": "--max-new-tokens",
    "prefix_tokens": "--prefix-tokens",
    "template": "chat template",
    "targets": "--targets",
    "dtype": "--dtype",
    "decoding": "decoding",
}


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How a model was measured.

    max_length: the cap on prompt + response, in tokens. max_new_tokens: of generated texts; None where nothing was
    generated. prefix_tokens: see `Suite`. template: the hash of the chat template, or "none". date: what templates take
    for today. targets: see `Wording`. dtype: of the weights. prompts: for each set, a hash of its prompts and answers as
    tokens, in any order.
    """

    max_length: int
    max_new_tokens: int | None
    prefix_tokens: int | None
    template: str
    date: str
    targets: str
    dtype: str
    decoding: str = "greedy"
    prompts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, loaded: Loaded, encoder: Encoder, plans: Sequence[Plan], *, new_tokens: int | None, prefix: int | None
    ) -> "Conditions":
        """Those of a measurement of `loaded` with this encoder on the plans' sets."""
        return cls(
            max_length=encoder.max_length,
            max_new_tokens=new_tokens,
            prefix_tokens=prefix,
            template=encoder.template.hash,
            date=encoder.wording.date,
            targets=encoder.wording.targets,
            dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
            prompts={plan.name: _hash(plan) for plan in plans},
        )

    @classmethod
    def read(cls, value: Any, where: str = "results") -> "Conditions | None":
        """The inverse of `to_dict`; None for results without any, which earlier versions wrote."""
        if not value:
            return None
        try:
            return TypeAdapter(cls).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["conditions", *map(str, first["loc"])])
            raise ConfigurationError(f"{where}: {place} is not understood: {first['msg']}.") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def unlike(self, other: "Conditions", same: Sequence[str] | None = None) -> list[str]:
        """What differs between both, in the user's words; empty where their numbers can be compared.

        same: the sets that hold the same examples in both; default: none is known to.
        """
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in NAMED}
        if self.max_new_tokens is None or other.max_new_tokens is None:
            del pairs["max_new_tokens"]
        words = [
            NAMED[name] if name == "template" else f"{NAMED[name]} ({own} and {their})"
            for name, (own, their) in pairs.items()
            if own != their
        ]
        sets = [name for name in same or () if self.prompts.get(name) != other.prompts.get(name)]
        if sets and not words:
            dates = f" (dates {self.date} and {other.date})" if self.date != other.date else ""
            words.append(f"the tokens of {', '.join(sets)}{dates}")
        return words


def alike(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The sets with the same examples and answers in both, by their hashes (see `Evaluation.asked`)."""
    return [name for name, value in one.items() if other.get(name) == value]


def _hash(plan: Plan) -> str:
    rows = sorted(f"{item.start} {item.ids}" for item in plan.encoded)
    return sha256("\n".join(rows).encode()).hexdigest()
