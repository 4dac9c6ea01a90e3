"""Measure sides by turns in one run, each in a process of its own.

    python -m benchmarks.speed SIDES.json RESULTS.json CASE ... [--sides NAME ...] [--rounds N]
    python -m benchmarks.speed.report RESULTS.json [--document FILE] [--plot FILE]

SIDES.json names what is compared, as {"ours": {"kind": "ours", "model": "PACKAGE"}, "llama.cpp":
{"kind": "llamacpp", "model": "FILE.gguf", "python": "PYTHON"}}; `sides.Spec` tells the fields.
What is measured is added to RESULTS.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from .cases import CASES, Bench
from .sides import Spec, open_sides, read_sides


def describe_machine() -> dict[str, Any]:
    """Describe processor, cores, memory and system, as far as the system tells."""
    facts: dict[str, Any] = {"system": platform.platform(), "cores": os.cpu_count()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        fields = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        flags = fields.get("flags", "").split()
        facts["processor"] = fields.get("model name", "")
        facts["vector extensions"] = [
            flag
            for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
            if flag in flags
        ]
    if hasattr(os, "getloadavg"):
        # Before anything of ours runs: others at work spoil every figure.
        facts["load before"] = round(os.getloadavg()[0], 1)
        if facts["load before"] > 0.5:
            print(f"the machine is busy: load {facts['load before']}", file=sys.stderr)
    if hasattr(os, "sysconf"):
        facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Measure sides by turns.",
        epilog="; ".join(f"{name}: {case.__doc__}" for name, case in CASES.items()),
    )
    parser.add_argument("sides_file", metavar="SIDES.json", type=Path)
    parser.add_argument("results", metavar="RESULTS.json", type=Path)
    parser.add_argument("cases", metavar="CASE", nargs="+", choices=list(CASES))
    parser.add_argument("--sides", nargs="+", metavar="NAME", help="these alone, in this order")
    parser.add_argument("--rounds", type=int, default=5, help="of each side (default: 5)")
    args = parser.parse_args()
    specs = read_sides(args.sides_file)
    specs = {name: specs[name] for name in args.sides or specs}
    results: dict[str, Any] = {"sides": {}, "cases": {}}
    if args.results.is_file():
        results = json.loads(args.results.read_text(encoding="utf-8"))
    results["machine"] = describe_machine()
    results["sides"] |= {name: {"kind": s.kind, "model": s.model} for name, s in specs.items()}

    def save() -> None:
        args.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    with open_sides({**specs, "machine": Spec("machine")}) as (*sides, machine):
        for name in args.cases:
            print(name, file=sys.stderr)
            bench = Bench(sides, machine, args.rounds, save)
            results["cases"].setdefault(name, []).append(bench.records)
            CASES[name](bench)


if __name__ == "__main__":
    main()
