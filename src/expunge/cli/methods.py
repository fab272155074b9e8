"""`expunge methods`"""

import dataclasses
import inspect
import json
import re
from typing import Annotated, Any

import typer


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with all of its settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Every method: its paper, its formula, its settings and their defaults."""
    from rich.console import Console
    from rich.table import Table

    from expunge.config import lookup, to_dict
    from expunge.methods import METHODS

    chosen = {name: lookup(METHODS, name, "method")} if name else METHODS
    if as_json:
        found = {key: {"doc": inspect.getdoc(kind), "settings": to_dict(kind())} for key, kind in chosen.items()}
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if name is None:
        table = Table("method", "what it does", "settings of its own", box=None, padding=(0, 2, 1, 0))
        for key, kind in METHODS.items():
            table.add_row(key, _summary(kind), _own_settings(kind), style=None)
        console.print(table)
        console.print("`expunge methods NAME` shows one with every setting; change any with --set key=value.")
        return
    kind = chosen[name]
    for described in (kind, kind.__mro__[1]):
        if described is not object:
            console.print(_reflowed(inspect.getdoc(described) or ""), markup=False)
            console.print()
    table = Table("setting", "default", box=None, padding=(0, 2, 0, 0))
    for key, value in to_dict(kind()).items():
        table.add_row(key, _shown(value))
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


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        rest = ", ".join(f"{key} {_shown(item)}" for key, item in value.items() if key != "name")
        return value["name"] + (f" ({rest})" if rest else "")
    return "none" if value is None else str(value)
