"""Tabulate what recipes do to a checkpoint's answers, by method and block size.

    python -m benchmarks.quality.recipes CHECKPOINT WORKDIR [--per-task N]

Export CHECKPOINT, which is one of phi-edge-tiny, in float32 and with every recipe, calibrated on
samples of the training split, and ask each package held-out questions.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import phi_edge
from benchmarks.tables import format_header, format_row
from export import Checkpoint, encode_samples, export_package
from phi_edge.evaluation.samples import read_samples
from quantize import Activations, CacheDtype, Method, PrefillDtype, make_recipe

from .evaluate import compare, evaluate, select_questions
from .samples import write_samples


@dataclasses.dataclass(frozen=True)
class Row:
    """What differs from recipe to recipe."""

    method: Method
    block_size: int
    activations: Activations = "auto"
    cache_dtype: CacheDtype = "float"
    prefill_dtype: PrefillDtype = "int4"


ROWS = (
    *(Row(method, size) for size in (32, 64, 128) for method in ("nearest", "search", "gptq")),
    Row("gptq", 128, "float"),
    Row("gptq", 128, "auto", "int8"),
    Row("gptq", 128, "auto", "int8", "int8"),
    Row("gptq", 256),
)
_NUM_SAMPLES = 100
_COLUMNS = (
    "method", "block size", "activations", "cache", "prefill", "decoder", "KL divergence",
    "same next token", "right",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--per-task", type=int, default=50, help="questions a task")
    args = parser.parse_args()
    checkpoint = Checkpoint(args.checkpoint)
    write_samples(args.workdir / "samples", "train", _NUM_SAMPLES)
    samples = encode_samples(checkpoint, read_samples(args.workdir / "samples"))
    questions = select_questions(args.per_task)
    export_package(checkpoint, args.workdir / "fp32", make_recipe("fp32", "cpu"), overwrite=True)
    print(format_header(*_COLUMNS))
    with phi_edge.load_model(args.workdir / "fp32") as reference:
        right = evaluate(reference, questions)["all"].accuracy
        print(format_row("float32", *[""] * (len(_COLUMNS) - 2), f"{right:.1%}"), flush=True)
        for row in ROWS:
            recipe = make_recipe("int4", "cpu", **dataclasses.asdict(row))
            target = args.workdir / "-".join(map(str, dataclasses.astuple(row)))
            manifest = export_package(checkpoint, target, recipe, samples=samples, overwrite=True)
            with phi_edge.load_model(target) as model:
                agreement = compare(model, reference, questions)
                right = evaluate(model, questions)["all"].accuracy
            size = manifest.files["decoder.onnx.data"].size / 1e6
            found = (f"{agreement.kl:.4f}", f"{agreement.equal:.2%}", f"{right:.1%}")
            print(format_row(*dataclasses.astuple(row), f"{size:.2f} MB", *found), flush=True)


if __name__ == "__main__":
    main()
