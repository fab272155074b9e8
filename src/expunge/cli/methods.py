"""`expunge methods`"""

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape


def methods(
    name: Annotated[str | None, typer.Argument(help="One method or mask, with all of its settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Every method and every mask: its paper, its formula, its settings and their defaults."""
    from rich.console import Console

    from expunge.attribution import ATTRIBUTIONS
    from expunge.config import canonical, lookup
    from expunge.methods import METHODS

    if name is not None:
        lookup({**METHODS, **ATTRIBUTIONS}, name, "method or mask")
    key = canonical(name or "")
    methods, masks = ({k: kind for k, kind in table.items() if key in ("", k)} for table in (METHODS, ATTRIBUTIONS))
    if as_json:
        found = {k: _described(kind) for k, kind in methods.items()}
        if masks:
            found["masks"] = {k: _described(kind) for k, kind in masks.items()}
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if name is None:
        _list(console, "method", {k: (kind, _own_settings(kind)) for k, kind in methods.items()})
        _list(console, "mask", {k: (kind, _settings_of_mask(kind)) for k, kind in masks.items()})
        console.print("`expunge methods NAME` shows one with every setting; change any with --set key=value.")
        console.print("A mask chooses the weights a method may change: `expunge attribute`, `expunge unlearn --mask`.")
        return
    for what, table in (("", methods), ("As a mask", masks)):
        for kind in table.values():
            if what and methods:
                console.print(f"\n[bold]{what}[/bold]\n")
            _show(console, kind)


def _described(kind: type) -> dict[str, Any]:
    from expunge.config import to_dict

    return {"doc": inspect.getdoc(kind), "settings": to_dict(kind())}


def _list(console: Any, what: str, rows: Mapping[str, tuple[type, str]]) -> None:
    from rich.table import Table

    table = Table(what, "what it does", "settings of its own", box=None, padding=(0, 2, 1, 0))
    for key, (kind, settings) in rows.items():
        table.add_row(key, escape(_summary(kind)), escape(settings))
    console.print(table)


def _show(console: Any, kind: type) -> None:
    from rich.table import Table

    from expunge.config import to_dict

    for described in (kind, kind.__mro__[1]):
        if described is not object:
            console.print(_reflowed(inspect.getdoc(described) or ""), markup=False)
            console.print()
    table = Table("setting", "default", box=None, padding=(0, 2, 0, 0))
    for key, value in to_dict(kind()).items():
        table.add_row(key, escape(_shown(value)))
    console.print(table)


def _reflowed(text: str) -> str:
    """Docstring lines joined to paragraphs; a line that explains a field (`name: ...`) begins anew."""
    return re.sub(r"(?<!\n)\n(?!\n|[\w, `]+: )", " ", text)


def _summary(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")


def _own_settings(kind: type) -> str:
    """The defaults in which a method differs from plain Descent, and all settings of its parts."""
    from expunge.config import to_dict
    from expunge.methods import Descent

    plain, own = Descent(), kind()
    names = [
        field.name
        for field in dataclasses.fields(own)
        if not hasattr(plain, field.name) or getattr(own, field.name) != getattr(plain, field.name)
    ]
    values = to_dict(own)
    return "\n".join(f"{name} {_shown(values[name])}" for name in names) or "as `descent`"


def _settings_of_mask(kind: type) -> str:
    """The settings a mask has besides those of every mask, with their defaults; and defaults of its own."""
    from expunge.attribution import Magnitude
    from expunge.config import to_dict

    plain, own = to_dict(Magnitude()), to_dict(kind())
    return "\n".join(f"{name} {_shown(value)}" for name, value in own.items() if plain.get(name, ...) != value)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        rest = ", ".join(f"{key} {_shown(item)}" for key, item in value.items() if key != "name")
        return value["name"] + (f" ({rest})" if rest else "")
    return "none" if value is None else str(value)
