"""Settings: dataclass fields ↔ YAML keys ↔ `--set key=value`.

The dataclass is the schema. A field whose value is itself a small dataclass (a loss, a rate, ...) is a *part*; the class
says in `PARTS` which table of names each is taken from. In YAML or with --set:

    forget: npo                       a part by its name
    forget: {name: npo, beta: 0.05}   with settings of its own
    forget.beta: 0.05                 one setting of the part that stands there
    beta: 0.05                        the same, where only one part has a field of that name
"""

import dataclasses
import difflib
import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from expunge.errors import ConfigurationError
from expunge.reading import read_text
from expunge.settings_file import LIMIT, parse_yaml

T = TypeVar("T")
Table = Mapping[str, type]
Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


_NAMES: dict[type, str] = {}  # what a class is called in its table, which is what the user types
USUAL = {  # what other trainers call a setting
    "learning_rate": "lr", "num_train_epochs": "epochs", "num_epochs": "epochs", "max_steps": "steps", "num_steps": "steps",
    "per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation", "grad_accum": "accumulation", "save_steps": "checkpoint_every",
    "optim": "optimizer", "wd": "weight_decay", "random_seed": "seed", "max_norm": "max_grad_norm",
}  # fmt: skip


def table(kinds: dict[str, type[T]]) -> dict[str, type[T]]:
    """A table of names to classes; messages on their settings use these names."""
    for name, kind in kinds.items():
        _NAMES.setdefault(kind, name)
    return kinds


def name_of(cls: type) -> str:
    """What the user calls a class: its name in its table, or the class's own."""
    return _NAMES.get(cls, cls.__name__)


def canonical(name: str) -> str:
    """A name as the tables spell it: lower case, hyphens and underscores ignored."""
    return name.lower().replace("-", "").replace("_", "")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of `table` called `name`. Raises ConfigurationError that offers the nearest name."""
    key = canonical(str(name))
    if key in table:
        return table[key]
    raise ConfigurationError(f"Unknown {what} {name!r}. {_nearest(key, table)}")


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make a `cls` from settings. Raises ConfigurationError for unknown keys, unknown names and unfit values."""
    parts: Mapping[str, Table] = getattr(cls, "PARTS", {})
    names = _fields(cls)
    given: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigurationError(f"{name_of(cls)}: {key!r} is no name of a setting. {_nearest('', names)}")
        field, _, inner = key.replace("-", "_").partition(".")
        if field not in names and not inner:
            field, inner = _owner(cls, field), field
        if field not in names:
            raise ConfigurationError(f"{name_of(cls)} has no setting {key!r}. {_nearest(field, names)}")
        if inner:
            if field not in parts:
                raise ConfigurationError(f"{name_of(cls)}'s {field!r} is a single value; it has no setting {inner!r}.")
            nested.setdefault(field, {})[inner] = value
        else:
            given[field] = value
    for field in [name for name in parts if name in given or name in nested]:
        standing = given.get(field, names[field].default)
        given[field] = _part(parts[field], standing, nested.get(field, {}), field)
    return cls(**given)


def check(instance: Any) -> None:
    """Validate every field of a dataclass instance against its annotation; for use in `__post_init__`.

    Numbers written as text and the like are converted. Raises ConfigurationError naming the field, what it got and why
    that does not fit.
    """
    cls = type(instance)
    for name, table in getattr(cls, "PARTS", {}).items():
        value = getattr(instance, name)
        if value is not None and not isinstance(value, tuple(table.values())):
            raise ConfigurationError(f"{name_of(cls)}.{name}: {value!r} is none of {', '.join(table)}.")
    for name, adapter in _adapters(cls):
        value = getattr(instance, name)
        try:
            object.__setattr__(instance, name, adapter.validate_python(value))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigurationError(f"{name_of(cls)}.{name} = {value!r} does not fit: {reason}.") from None


def to_dict(instance: Any) -> dict[str, Any]:
    """The settings of a dataclass as plain values; `build` makes the same instance of them."""
    parts = getattr(type(instance), "PARTS", {})
    values: dict[str, Any] = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if field.name in parts and value is not None:
            name = next(name for name, kind in parts[field.name].items() if kind is type(value))
            values[field.name] = {"name": name, **to_dict(value)}
        else:
            values[field.name] = value
    return values


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping. Raises ConfigurationError with file and line."""
    values = parse_yaml(read_text(path, ConfigurationError, limit=LIMIT), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected `key: value` lines, found a {type(values).__name__}.")
    return values


def parse_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `key=value` words into a mapping; values are read as YAML (so 1e-4, true, null and lists work)."""
    values: dict[str, Any] = {}
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(f"--set {word!r}: write it as key=value, e.g. --set lr=1e-4.")
        key = key.strip()
        same = next((known for known in values if known.replace("-", "_") == key.replace("-", "_")), None)
        if same is not None:
            raise ConfigurationError(f"--set gives {same} twice. Leave one of the two out.")
        values[key] = _scalar(text)
    return values


def _scalar(text: str) -> Any:
    try:
        value = parse_yaml(text, "--set")
    except ConfigurationError:
        return text  # not YAML: a plain text
    try:
        return float(value) if isinstance(value, str) else value  # YAML reads 1e-4 as text
    except ValueError:
        return value


def _part(table: Table, standing: Any, changes: dict[str, Any], field: str) -> Any:
    if isinstance(standing, str):
        return build(lookup(table, standing, field), changes)
    if isinstance(standing, Mapping):
        settings = {**standing, **changes}
        if "name" not in settings:
            raise ConfigurationError(f"{field}: give its name, one of {', '.join(table)}.")
        name = settings.pop("name")
        return build(lookup(table, name, field), settings)
    if not changes:
        return standing
    if standing is None:
        raise ConfigurationError(f"{field} is none here, so it has no setting {next(iter(changes))!r}.")
    return build(type(standing), {**to_dict(standing), **changes})


def _owner(cls: type, key: str) -> str:
    """The one part of `cls` whose default has a field called `key`."""
    owners = [
        field.name
        for field in dataclasses.fields(cls)  # pyrefly: ignore
        if field.name in getattr(cls, "PARTS", {})
        and dataclasses.is_dataclass(field.default)
        and key in {inner.name for inner in dataclasses.fields(field.default)}
    ]
    if len(owners) == 1:
        return owners[0]
    if USUAL.get(key) in _fields(cls):
        raise ConfigurationError(f"{name_of(cls)} has no setting {key!r}. It is called {USUAL[key]!r} here.")
    if owners:
        choices = " or ".join(f"{owner}.{key}" for owner in owners)
        raise ConfigurationError(f"{name_of(cls)}: {key!r} could mean {choices}; say which.")
    known = [*_fields(cls), *(f"{part}.{name}" for part, name in _part_fields(cls))]
    near = difflib.get_close_matches(key, [name.rpartition(".")[2] for name in known], n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Its settings: {', '.join(known)}."
    raise ConfigurationError(f"{name_of(cls)} has no setting {key!r}. {hint}")


def _part_fields(cls: type) -> list[tuple[str, str]]:
    return [
        (field.name, inner.name)
        for field in dataclasses.fields(cls)  # pyrefly: ignore
        if field.name in getattr(cls, "PARTS", {}) and dataclasses.is_dataclass(field.default)
        for inner in dataclasses.fields(field.default)
    ]


def _fields(cls: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(cls)}  # pyrefly: ignore


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."


@cache
def _adapters(cls: type) -> tuple[tuple[str, TypeAdapter], ...]:
    """A validator for each field that is no part."""
    hints = get_type_hints(cls, include_extras=True)
    names = [name for name in _fields(cls) if name not in getattr(cls, "PARTS", {})]
    return tuple((name, TypeAdapter(hints[name])) for name in names)


def first_paragraph(cls: type) -> str:
    """The summary line(s) of a docstring, for listings."""
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
