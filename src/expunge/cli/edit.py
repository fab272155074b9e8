"""`expunge edit`"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from expunge import interrupts
from expunge.cli import options

PLAIN_EVERY = 10.0  # seconds between two plain lines


def edit(
    base: Annotated[str, typer.Option("--base", help="The model to change; it stays as it is.")],
    scale: Annotated[float, typer.Option("--scale", help="α: above 0 adds plus − minus, below 0 removes it.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    plus: Annotated[str | None, typer.Option("--plus", help="A model, or a LoRA adapter for the base.")] = None,
    minus: Annotated[str | None, typer.Option("--minus", help="What is taken from plus: of the same kind.")] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A safetensors file with w, entry by entry.")
    ] = None,
    overwrite: options.Overwrite = False,
    resume: Annotated[bool, typer.Option(help="Go on from the shards an interrupted run finished.")] = True,
    quiet: options.Quiet = False,
) -> None:
    """Checkpoint arithmetic, base + α·w⊙(plus − minus), in constant memory whatever the model's size."""
    from expunge.models.resumable import place_of
    from expunge.patch.edit import edit as run

    def note(text: str) -> None:
        if not quiet:
            typer.echo(f"note: {text}", err=True)

    try:
        with _progress(quiet=quiet) as progress:
            done = run(
                base,
                plus=plus,
                minus=minus,
                scale=scale,
                weights=weights,
                out=out,
                overwrite=overwrite,
                resume=resume,
                progress=progress,
                note=note,
            )
    except KeyboardInterrupt:
        left = place_of(out)
        kept = f" Finished shards are kept in {left}; the same command goes on from them." if left.exists() else ""
        typer.echo(f"stopped; {out} is as it was.{kept}", err=True)
        raise typer.Exit(128 + (interrupts.received() or 2)) from None
    typer.echo(
        f"Written to {done.out}: {done.changed} of {done.tensors} tensors changed, ‖change‖ {done.change_norm:.4g}, "
        f"{done.seconds:.1f} s, {done.moved / done.seconds / 1e9:.2f} GB/s"
    )


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Bytes and bytes a second: a bar on a terminal, a plain line now and then elsewhere."""
    if quiet:
        yield None
    elif not sys.stderr.isatty():
        yield _plain()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress("  read and written", *columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("edit", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain() -> Callable[[int, int], None]:
    last, before = time.monotonic(), -1

    def show(done: int, total: int) -> None:
        nonlocal last, before
        now = time.monotonic()
        if before < 0:
            before = done  # what an earlier run had done
        elif now - last > PLAIN_EVERY:
            speed = (done - before) / (now - last) / 1e9
            print(f"  read and written: {done / 1e9:.1f}/{total / 1e9:.1f} GB, {speed:.2f} GB/s", file=sys.stderr)
            last, before = now, done

    return show
