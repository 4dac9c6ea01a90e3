"""Markdown tables, row by row."""

from __future__ import annotations


def format_row(*cells: object) -> str:
    """Format a row."""
    return f"| {' | '.join(map(str, cells))} |"


def format_header(*names: str) -> str:
    """Format the names of the columns and the line below them."""
    return f"{format_row(*names)}\n{format_row(*['---'] * len(names))}"
