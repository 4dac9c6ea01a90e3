"""Compare the speed of two commits by ratio, in one run that alternates them.

    python -m benchmarks.speed.compare_commits BASE HEAD [--package DIR] [--case NAME ...]

Each commit is checked out into a temporary folder. Without a package, each commit's exporter writes
one of full size with random weights. The cases are those of this checkout. Each commit brings its
own worker, which knows where its modules are: a commit that changes what a worker does changes what
is compared. Exits with 1 when HEAD is slower than the limit
allows.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .cases import CASES, Bench
from .report import Row, collect_rows, format_markdown
from .sides import ROOT, Spec, open_sides


@contextmanager
def checkouts(commits: Sequence[str]) -> Iterator[list[Path]]:
    """Check out each commit into a folder of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(number) for number in range(len(commits))]
        try:
            for commit, folder in zip(commits, folders, strict=True):
                _git("worktree", "add", "--quiet", "--detach", str(folder), commit)
            yield folders
        finally:
            for folder in folders:
                if folder.exists():
                    _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True)  # noqa: S603, S607


def _write_package(checkout: Path) -> Path:
    """Write a package of full size with a commit's own exporter."""
    package = checkout / "package"
    command = [sys.executable, "-m", "benchmarks.synthetic_package", str(package)]
    subprocess.run(command, cwd=checkout, check=True)  # noqa: S603
    return package


def find_regressions(rows: Sequence[Row], limit: float) -> list[str]:
    """Tell which figures of HEAD are worse than `limit` times those of BASE."""
    found = []
    for row in rows:
        if row.side != "head" or not row.ratios:
            continue
        ratio = statistics.median(row.ratios)  # base / head
        speed = 1 / ratio if row.figure.endswith("per_s") else ratio
        if speed < limit:
            found.append(f"{row.case}, {row.figure}: {speed:.2f} of the base")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", metavar="BASE", help="commit, branch or tag")
    parser.add_argument("head", metavar="HEAD", help="the same")
    parser.add_argument("--package", type=Path, help="package that both commits run")
    parser.add_argument(
        "--case",
        dest="cases",
        nargs="+",
        choices=list(CASES),
        default=["prefill_512", "decode_512"],
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each commit (default: 5)")
    parser.add_argument("--limit", type=float, default=0.9, help="least speed (default: 0.9)")
    args = parser.parse_args()
    with checkouts([args.base, args.head]) as folders:
        specs = {
            name: Spec(
                "ours",
                str(args.package.absolute() if args.package else _write_package(folder)),
                root=str(folder),
            )
            for name, folder in zip(("base", "head"), folders, strict=True)
        }
        measured = {}
        with open_sides({**specs, "machine": Spec("machine")}) as (*sides, machine):
            for case in args.cases:
                bench = Bench(sides, machine, args.rounds)
                CASES[case](bench)
                measured[case] = [bench.records]
    rows = collect_rows(measured)
    print(format_markdown(rows))
    regressions = find_regressions(rows, args.limit)
    if regressions:
        sys.exit("slower: " + "; ".join(regressions))


if __name__ == "__main__":
    main()
