"""What the studies share: results kept in files, so that an interrupted study goes on; a table and a report."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from expunge.files import write_json, write_text
from expunge.reporting import markdown_table, write_report


def kept(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of the JSON file `path`, computed and written first where it does not exist yet."""
    if not path.exists():
        write_json(path, compute())
    return json.loads(path.read_text())


def finish(work: Path, name: str, title: str, suite: str, runs: Sequence[dict[str, Any]]) -> None:
    """Write NAME.json, NAME.html and NAME.md, and print the table."""
    results = {"title": title, "suite": suite, "runs": list(runs)}
    write_json(work / f"{name}.json", results)
    write_report(results, work / f"{name}.html")
    write_text(work / f"{name}.md", markdown_table(results))
    print(markdown_table(results), flush=True)
