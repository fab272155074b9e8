"""`expunge metrics`"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape

from expunge.errors import ConfigurationError


def metrics(
    name: Annotated[str | None, typer.Argument(help="One metric, with all that is known of it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Every metric: what it means, its formula, which way is better, and where it is from."""
    from rich.console import Console

    from expunge.evaluation.metrics import METRICS

    table = METRICS if name is None else {name: _named(METRICS, name)}
    if as_json:
        found = {key: dataclasses.asdict(metric) for key, metric in table.items()}
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if name is not None:
        _show(console, next(iter(table.values())))
        return
    _list(console, table)
    console.print(
        "↓ lower is better, ↑ higher, → best where the retrained model's is; a second arrow: on sets to keep."
    )
    console.print("A result's key is SET.NAME, as forget.rouge_l, or NAME alone. `expunge metrics NAME` shows one.")


def _named(table: Mapping[str, Any], name: str) -> Any:
    """The metric of a name or of a result's key. Raises ConfigurationError that offers the nearest name."""
    for key in (name, name.partition(".")[2]):
        if key in table:
            return table[key]
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise ConfigurationError(f"No metric is called {name!r}. {hint}`expunge metrics` lists all.")


def _list(console: Any, table: dict[str, Any]) -> None:
    from rich.table import Table

    rows = Table(box=None, padding=(0, 2, 0, 0))
    rows.add_column("metric", no_wrap=True)
    for heading in ("", "formula", "needs"):
        rows.add_column(heading)
    for key, metric in table.items():
        rows.add_row(("SET." if metric.on_sets else "") + key, _arrows(metric), escape(metric.formula), metric.needs)
    console.print(rows)


def _show(console: Any, metric: Any) -> None:
    from rich.table import Table

    console.print(f"[bold]{escape(metric.label)}[/bold] {_arrows(metric)}\n")
    console.print(metric.definition, markup=False)
    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for what in ("formula", "source", "needs"):
        if getattr(metric, what):
            rows.add_row(what, escape(getattr(metric, what)))
    rows.add_row("key", ("SET." if metric.on_sets else "") + metric.name)
    console.print()
    console.print(rows)


def _arrows(metric: Any) -> str:
    return f"{metric.better or '–'} {metric.kept}".strip()
