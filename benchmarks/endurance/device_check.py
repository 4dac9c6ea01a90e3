"""Check that a provider of this machine runs what packages hold, and gives right answers.

    python -m benchmarks.endurance.device_check cuda

Run it in a checkout with the extra `export` and the provider's own, which `phi-edge doctor` names.
It makes the doctor's probe. It compares logits of the golden checkpoint with those that Microsoft's
code computed in float32; ours are in float16 where the provider has a target of that. It compares
the answers of phi-edge-tiny, in the same precision and in int4, with its answers on the CPU. The
exit code is 0 if all agree.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import phi_edge
from benchmarks.synthetic_checkpoint import write_tokenizer
from export import Checkpoint, encode_samples, export_package
from phi_edge.engine.doctor import examine
from phi_edge.engine.providers import TARGETS
from phi_edge.evaluation.samples import bundled_samples
from phi_edge.image.files import open_image
from phi_edge.text.prompt import chat_text, image_tags
from quantize import make_recipe

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
TINY = ROOT / "benchmarks" / "quality" / "checkpoint"

# Largest difference of any logit (standard deviation 1.0) in float16; the tests' bound on the CPU.
LOGITS = 0.02
NUM_QUESTIONS = 12


def export(checkpoint: Path, target: Path, precision: str, provider: str) -> Path:
    """Export for the provider; those that have no target of their own take the CPU's."""
    built_for = provider if provider in TARGETS else "cpu"
    recipe, source = make_recipe(precision, built_for), Checkpoint(checkpoint)
    samples = encode_samples(source, bundled_samples("calibration")) if recipe.is_calibrated else ()
    export_package(source, target, recipe, provider=built_for, samples=samples)
    return target


def golden_differences(model: phi_edge.Model) -> Iterator[tuple[str, float]]:
    """Give each golden case with the largest difference of its first logits."""
    with np.load(GOLDEN / "golden.npz") as arrays:
        cases = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["logits"]
        for name, case in cases.items():
            crops = tuple(
                model.preprocess(open_image(GOLDEN / "images" / f"{image}.png"), case["num_crops"])
                for image in case.get("images") or ()
            )
            run = model.start(phi_edge.Prompt(arrays[f"{name}__ids"], crops))
            yield name, float(np.abs(run.logits - arrays[f"{name}__step_logits"][0]).max())


def answers(folder: Path, provider: str) -> list[list[int]]:
    """Generate the greedy tokens of a package's answers to the first bundled questions."""
    found = []
    with phi_edge.load_model(folder, provider=provider) as model:
        for sample in bundled_samples("held_out")[:NUM_QUESTIONS]:
            text = chat_text([("user", image_tags(len(sample.images)) + sample.question)])
            prompt = model.encode_prompt(text, [open_image(path) for path in sample.images], 1)
            found.append([event.token_id for event in model.generate(prompt, max_tokens=16)])
    return found


def check(provider: str, folder: Path) -> Iterator[tuple[str, bool]]:
    """Check everything, and tell what was checked and whether it was right."""
    probe = examine().providers[provider]
    yield (
        f"probe: {probe.problem or f'differs from NumPy by {probe.max_error:.1e}'}",
        (not probe.problem),
    )
    shutil.copytree(GOLDEN / "checkpoint", folder / "golden")
    write_tokenizer(folder / "golden")
    # Providers without a target of their own run the CPU's graphs, which are in float32.
    precision = "fp16" if provider in TARGETS else "fp32"
    package = export(folder / "golden", folder / "golden-package", precision, provider)
    with phi_edge.load_model(package, provider=provider) as model:
        for name, difference in golden_differences(model):
            yield f"golden {name}: {difference:.1e}", difference <= LOGITS
    for each in (precision, "int4"):
        package = export(TINY, folder / each, each, provider)
        expected, found = answers(package, "cpu"), answers(package, provider)
        same = sum(a == b for a, b in zip(expected, found, strict=True))
        yield f"{each}: {same} of {len(found)} answers as on the CPU", same == len(found)


def main() -> None:
    provider = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        results = []
        try:
            for text, is_right in check(provider, Path(folder)):
                print("ok  " if is_right else "BAD ", text, flush=True)
                results.append(is_right)
        except phi_edge.PhiEdgeError as error:
            sys.exit(f"BAD  {error}")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
