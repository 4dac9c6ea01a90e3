"""Turn what `benchmarks.speed` has measured into a table and a plot.

    python -m benchmarks.speed.report RESULTS.json [--document FILE] [--plot FILE]

A ratio is the median over the rounds of the first side's figure / this side's figure. The plot
needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tables import format_row

from .cases import CASES

_MACHINE = "machine"
_START, _END = "<!-- results -->\n", "<!-- end -->\n"


class Row(NamedTuple):
    """A figure of a side in a case.

    Attributes:
        values: What was measured, round by round, over all runs.
        ratios: The first side's figure / this one's, round by round; empty for the first side and
            for figures that it does not have.
    """

    case: str
    figure: str
    side: str
    values: list[float]
    ratios: list[float]


def collect_rows(cases: dict[str, list[list[dict[str, Any]]]]) -> list[Row]:
    """Collect the rows of all cases, each case's first side first."""
    rows: dict[tuple[str, str, str], Row] = {}
    for case in [name for name in CASES if name in cases]:
        for records in cases[case]:
            first = next((r["side"] for r in records if r["side"] != _MACHINE), None)
            base = {r["round"]: r["figures"] for r in records if r["side"] == first}
            for record in records:
                side = record["side"]
                for figure, value in record["figures"].items():
                    row = rows.setdefault((case, side, figure), Row(case, figure, side, [], []))
                    row.values.append(value)
                    other = base.get(record["round"], {}).get(figure)
                    if side != first and other is not None:
                        row.ratios.append(other / value)
    return list(rows.values())


def format_markdown(rows: Sequence[Row]) -> str:
    """Format a Markdown table of medians, ranges and ratios."""
    lines = [
        "| case | figure | side | median | range | first side / this | rounds |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        middle, low, high = (
            _show(row.figure, pick(row.values)) for pick in (statistics.median, min, max)
        )
        ratio = f"{statistics.median(row.ratios):.2f}" if row.ratios else ""
        names = (row.case, _LABELS.get(row.figure, row.figure), row.side)
        lines.append(format_row(*names, middle, f"{low} - {high}", ratio, len(row.values)))
    return "\n".join(lines) + "\n"


_LABELS = {
    "tokens_per_s": "tokens/s",
    "bandwidth_used_per_s": "share of bandwidth",
    "read_bytes_per_s": "memory read, GB/s",
    "int8_flop_per_s": "int8, GFLOP/s",
    "s_per_crop": "s a crop",
    "first_token_s": "s to first token",
    "first_s": "first question, s",
    "second_s": "second question, s",
    "second_over_first": "second / first",
    "together_per_s": "tokens/s of all choices",
    "together_over_one": "all choices / one",
    "drafted_per_s": "tokens/s with drafts",
    "drafted_over_plain": "with drafts / without",
    "load_s": "s from start to first token",
    "peak_rss_bytes": "peak RSS, GB",
}


def _show(figure: str, value: float) -> str:
    if figure.endswith(("bytes", "bytes_per_s", "flop_per_s")):
        value /= 1e9
    return f"{value:.0%}" if figure == "bandwidth_used_per_s" else f"{value:,.3g}"


def format_machine(machine: dict[str, Any]) -> str:
    """Describe the machine in a line."""
    facts = dict(machine)
    facts["memory"] = f"{facts.pop('memory_bytes', 0) / 2**30:.0f} GiB"
    listed = (
        f"{name} {' '.join(value) if isinstance(value, list) else value}"
        for name, value in facts.items()
    )
    return f"Measured on: {'; '.join(listed)}.\n"


def write_into(document: Path, text: str) -> None:
    """Replace what stands between the marks of a document.

    Raises:
        ValueError: It has no such marks.
    """
    before, start, rest = document.read_text(encoding="utf-8").partition(_START)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"{document} has no {_START.strip()} with {_END.strip()} after it")
    document.write_text(f"{before}{start}{text}{end}{after}", encoding="utf-8")


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Plot bars of the medians with their ranges, a panel for each figure of a case."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.side != _MACHINE:
            panels.setdefault((row.case, row.figure), []).append(row)
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 0.9 * len(panels) + 0.4 * len(rows)), squeeze=False
    )
    for axis, ((case, name), shown) in zip(axes[:, 0], panels.items(), strict=True):
        middles = [statistics.median(row.values) for row in shown]
        below = [middle - min(row.values) for middle, row in zip(middles, shown, strict=True)]
        above = [max(row.values) - middle for middle, row in zip(middles, shown, strict=True)]
        axis.barh([row.side for row in shown], middles, xerr=[below, above])
        axis.invert_yaxis()
        axis.set_title(f"{case}: {_LABELS.get(name, name).removesuffix(', GB')}", loc="left")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument(
        "--document", type=Path, metavar="FILE", help="Markdown file to put the table into"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot (.svg, .png)")
    args = parser.parse_args()
    results = json.loads(args.results.read_text(encoding="utf-8"))
    rows = collect_rows(results["cases"])
    table = format_markdown(rows)
    print(table)
    if args.document:
        write_into(args.document, f"{format_machine(results['machine'])}\n{table}")
    if args.plot:
        write_plot(rows, args.plot)


if __name__ == "__main__":
    main()
