"""Which modules import which, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, set[str]]


def module_files(root: Path, packages: Iterable[str]) -> dict[str, Path]:
    """The modules of some packages by their names; a package's name is that of `__init__`."""
    files = {}
    for package in packages:
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts).removesuffix(".__init__")] = path
    return files


def imported(module: str, path: Path) -> Iterator[tuple[str, str]]:
    """What a module imports, anywhere in its source: modules, and names from them ("" for none)."""
    # Dots of a relative import are taken from here.
    package = f"{module}." if path.name == "__init__.py" else module
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level)[0] if node.level else ""
            source = ".".join(filter(None, (start, node.module)))
            yield from ((source, name.name) for name in node.names)


def import_graph(files: Mapping[str, Path]) -> Graph:
    """Module -> those that it imports, among these modules.

    A name from a package is its submodule of that name, if there is one, and else the package's
    own: its `__init__` counts only where something is taken from it.
    """
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        found = {
            f"{source}.{name}" if f"{source}.{name}" in files else source
            for source, name in imported(module, path)
        }
        graph[module] = (found & files.keys()) - {module}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Sets of modules that import one another, directly or not."""
    reached = {module: _reach(graph, module) for module in graph}
    found = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }
    return sorted(map(list, found))


def _reach(graph: Graph, module: str) -> set[str]:
    """What a module imports, directly or not; itself only if it is in a circle."""
    reached: set[str] = set()
    waiting = [*graph[module]]
    while waiting:
        other = waiting.pop()
        if other not in reached:
            reached.add(other)
            waiting += graph[other]
    return reached
