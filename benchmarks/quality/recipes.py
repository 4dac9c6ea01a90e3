"""What recipes do to a checkpoint's answers: a table of methods and block sizes.

    python -m benchmarks.quality.recipes CHECKPOINT WORKDIR [--per-task N]

Exports CHECKPOINT, which is one of phi-edge-tiny, in float32 and with every recipe, calibrated on
samples of the training split, and asks each package held-out questions.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import phi_edge
from export import Checkpoint, encode_samples, export_package
from phi_edge.samples import read_samples
from quantize import Activations, Method, make_recipe

from .evaluate import compare, evaluate, select_questions
from .samples import write_samples

METHODS: tuple[Method, ...] = ("nearest", "search", "gptq")
BLOCK_SIZES = (32, 64, 128)
ACTIVATIONS: tuple[Activations, ...] = ("auto", "float")
_NUM_SAMPLES = 100


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
    print(
        "| method | block size | activations | decoder | KL divergence | same next token | right |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with phi_edge.load_model(args.workdir / "fp32") as reference:
        right = evaluate(reference, questions)["all"].accuracy
        print(f"| float32 | | | | | | {right:.1%} |")
        for activations, block_size, method in itertools.product(ACTIVATIONS, BLOCK_SIZES, METHODS):
            recipe = make_recipe(
                "int4",
                "cpu",
                method=method,
                block_size=block_size,
                activations=activations,
            )
            target = args.workdir / f"{method}-{block_size}-{activations}"
            manifest = export_package(checkpoint, target, recipe, samples=samples, overwrite=True)
            with phi_edge.load_model(target) as model:
                agreement = compare(model, reference, questions)
                right = evaluate(model, questions)["all"].accuracy
            size = manifest.files["decoder.onnx.data"].size / 1e6
            print(
                f"| {method} | {block_size} | {activations} | {size:.2f} MB | {agreement.kl:.4f} | "
                f"{agreement.equal:.2%} | {right:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
