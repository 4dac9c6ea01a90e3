"""The cases, one function each. To add one, write it here and add it to `CASES`.

A case gets a bench, asks its sides for tasks by turns, and records figures. Figures whose names end
in `_per_s` are better when larger; of all others, less is better.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from .sides import Figures, Side, UnknownTaskError, open_sides
from .texts import EXTRACTION, READING

# Threads of a side spin for a moment after their work.
_PAUSE_S = 0.3


@dataclasses.dataclass
class Bench:
    """What a case measures with.

    Attributes:
        sides: The first is the one that others are measured against.
        machine: The machine's own limits.
        num_rounds: How often each side is asked, by turns.
        save: Called when something was recorded, so that a run that is stopped loses nothing.
        records: What was measured: side, round and figures.
    """

    sides: list[Side]
    machine: Side
    num_rounds: int
    save: Callable[[], object] = lambda: None
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def record(self, side: Side, number: int, figures: Figures) -> None:
        """Keep one round's figures, and show them."""
        shown = ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())
        print(f"  {number}: {side.name}: {shown}", file=sys.stderr, flush=True)
        self.records.append({"side": side.name, "round": number, "figures": figures})
        self.save()

    def prepare(self, task: str, **arguments: Any) -> list[Side]:
        """Run a task whose figures do not count, and give the sides that have it."""
        return [side for side in self.sides if self._can(side, task, arguments)]

    @staticmethod
    def _can(side: Side, task: str, arguments: dict[str, Any]) -> bool:
        try:
            side.ask(task, **arguments)
        except UnknownTaskError as error:
            print(f"  {error}", file=sys.stderr)
            return False
        return True

    def turns(self, sides: list[Side]) -> Iterator[tuple[int, Side]]:
        """Give round and side, the sides by turns, with a pause before each."""
        for number in range(self.num_rounds):
            for side in sides:
                time.sleep(_PAUSE_S)
                yield number, side


def _prefill(bench: Bench, num_tokens: int) -> None:
    sides = bench.prepare("prefill", num_tokens=128)
    for number, side in bench.turns([bench.machine, *sides]):
        is_machine = side is bench.machine
        figures = side.ask("int8") if is_machine else side.ask("prefill", num_tokens=num_tokens)
        bench.record(side, number, figures)


def _decode(bench: Bench, num_tokens: int) -> None:
    """The sequences go on from round to round, all by the same number of tokens."""
    sides = bench.prepare("prefill", num_tokens=num_tokens)
    for side in sides:
        side.ask("decode", num_tokens=4)
    limit: Figures = {}
    for number, side in bench.turns([bench.machine, *sides]):
        if side is bench.machine:
            figures = limit = side.ask("bandwidth")
        else:
            figures = side.ask("decode", num_tokens=16)
            if "weight_bytes_per_s" in figures:
                used = figures.pop("weight_bytes_per_s")
                figures["bandwidth_used_per_s"] = used / limit["read_bytes_per_s"]
        bench.record(side, number, figures)


def prefill_512(bench: Bench) -> None:
    """Prompt of 512 tokens: tokens per second."""
    _prefill(bench, 512)


def prefill_2380(bench: Bench) -> None:
    """Prompt of 2,380 tokens, an image at 16 crops: tokens per second."""
    _prefill(bench, 2380)


def decode_512(bench: Bench) -> None:
    """Tokens per second after 512 tokens."""
    _decode(bench, 512)


def decode_2380(bench: Bench) -> None:
    """Tokens per second after 2,380 tokens."""
    _decode(bench, 2380)


def decode_sampled(bench: Bench) -> None:
    """Tokens per second after 64 tokens, at temperature 0.8 and top_p 0.95; of our sides alone."""
    sides = bench.prepare("sampled", num_tokens=4)
    for number, side in bench.turns(sides):
        bench.record(side, number, side.ask("sampled", num_tokens=32))


def vision(bench: Bench) -> None:
    """Vision tower: seconds a crop."""
    sides = bench.prepare("vision", seed=0)
    for number, side in bench.turns(sides):
        bench.record(side, number, side.ask("vision", seed=number + 1))


def _photo(bench: Bench, rows: int, columns: int) -> None:
    grid = {"rows": rows, "columns": columns}
    sides = bench.prepare("question", seed=0, num_tokens=1, rows=1, columns=1)
    for number, side in bench.turns(sides):
        bench.record(side, number, side.ask("question", seed=number + 1, num_tokens=1, **grid))


def photo(bench: Bench) -> None:
    """First token about a photo of 1344 x 1008 pixels at 4 crops, with 20 words."""
    _photo(bench, 2, 2)


def photo_auto(bench: Bench) -> None:
    """The same at the 12 crops of `detail` "auto", which one of 1600 x 1200 pixels has, too."""
    _photo(bench, 3, 4)


def second_question(bench: Bench) -> None:
    """The same photo, asked about a second time in the same process."""
    sides = bench.prepare("second_question", seed=0, rows=1, columns=1)
    for number, side in bench.turns(sides):
        figures = side.ask("second_question", seed=100 + number, rows=2, columns=2)
        bench.record(side, number, figures)


def reopened(bench: Bench) -> None:
    """The same in a new process, from the cache on disk; of our sides alone."""
    for number in range(bench.num_rounds):
        for side in bench.sides:
            if side.spec.kind == "ours":
                bench.record(side, number, _reopen(side))


def _reopen(side: Side) -> Figures:
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        options = {**side.spec.options, "disk_cache": folder}
        specs = {side.name: dataclasses.replace(side.spec, options=options)}
        for num_tokens in (8, 9):
            with open_sides(specs) as [fresh]:
                # Of another length each, so that the questions' tokens are others, too.
                fresh.ask("prefill", num_tokens=num_tokens)
                figures = fresh.ask("question", seed=1, rows=2, columns=2, num_tokens=1)
            seconds.append(figures["first_token_s"])
    first, second = seconds
    return {"first_s": first, "second_s": second, "second_over_first": second / first}


def choices(bench: Bench) -> None:
    """Four choices decoded together, after 512 tokens, against one."""
    arguments = {"num_rows": 4, "num_tokens": 16}
    bench.prepare("prefill", num_tokens=512)
    sides = bench.prepare("choices", **arguments)
    for number, side in bench.turns(sides):
        bench.record(side, number, side.ask("choices", **arguments))


def _replay(bench: Bench, question: str, schema: dict[str, Any] | None, answer: str) -> None:
    arguments = {"question": question, "schema": schema, "answer": answer}
    sides = bench.prepare("replay", **arguments)
    for number, side in bench.turns(sides):
        bench.record(side, number, side.ask("replay", **arguments))


def reading(bench: Bench) -> None:
    """A text read out as it stands in the prompt, with drafts and without."""
    _replay(bench, *READING)


def extraction(bench: Bench) -> None:
    """The same text as JSON by a schema, with drafts and without."""
    _replay(bench, *EXTRACTION)


def load(bench: Bench) -> None:
    """Start of a process to the first token of a prompt of 8 tokens, files in the page cache."""
    for number in range(-1, bench.num_rounds):
        for side in bench.sides:
            with open_sides({side.name: side.spec}) as [fresh]:
                start = time.perf_counter()
                fresh.ask("prefill", num_tokens=8)
                seconds = time.perf_counter() - start
            if number >= 0:
                bench.record(side, number, {"load_s": seconds})


def memory(bench: Bench) -> None:
    """Peak RSS of a new process: an image at 16 crops (2,388 tokens) and 256 tokens more."""
    for side in bench.sides:
        with suppress(UnknownTaskError), open_sides({side.name: side.spec}) as [fresh]:
            figures = fresh.ask("question", seed=1, rows=3, columns=5, num_tokens=256)
            bench.record(side, 0, {"peak_rss_bytes": figures["peak_rss_bytes"]})


CASES: dict[str, Callable[[Bench], None]] = {
    case.__name__: case
    for case in (
        prefill_512,
        prefill_2380,
        decode_512,
        decode_2380,
        decode_sampled,
        vision,
        photo,
        photo_auto,
        second_question,
        reopened,
        choices,
        reading,
        extraction,
        load,
        memory,
    )
}
