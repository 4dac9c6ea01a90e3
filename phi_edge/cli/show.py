"""Tables and progress bars."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

# Over which speed is estimated; a layer can take a minute to calibrate.
_SPEED_SECONDS = 600


def show(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print names and values, as JSON or as a table."""
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        show_facts(facts)


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print a table of names and values."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        shown = (
            "\n".join(f"{key}: {entry}" for key, entry in value.items())
            if isinstance(value, dict)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
        table.add_row(name.replace("_", " "), shown)
    Console().print(table, markup=False)


@contextmanager
def export_progress() -> Iterator[Callable[[Any], None]]:
    """A bar for each stage of an export, with the time left; nothing where there is no terminal."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, speed_estimate_period=_SPEED_SECONDS
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def show(state: Any) -> None:
            if state.stage not in tasks:
                tasks[state.stage] = bar.add_task("", total=None, amount="")
            sizes = (state.num_bytes, state.total_bytes)
            # Bytes, where there are any, since tensors differ in size a thousandfold.
            completed, total = sizes if state.total_bytes else (state.num_items, state.total_items)
            bar.update(
                tasks[state.stage],
                completed=completed,
                total=total,
                description=f"{state.stage} {state.num_items + 1}/{state.total_items}",
                amount="/".join(map(decimal, sizes)) if state.total_bytes else "",
            )

        yield show
