"""Plot what certificates say: errors layer by layer, and agreement against size.

    python -m benchmarks.quality.plot_certificates OUT.png PACKAGE [PACKAGE ...]

Each package needs a `certificate.json`, as `phi-edge export` and `phi-edge certify` write it; the
errors of layers are those of the manifest, where the package was calibrated. Needs the extra
`bench`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from phi_edge.evaluation.certify import CERTIFICATE_FILE
from phi_edge.package import read_manifest


def plot_certificates(folders: list[Path]) -> Figure:
    """Draw a line for each package on the left, a point for each on the right."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    layers, sizes = figure.subplots(1, 2)
    for folder in folders:
        manifest = read_manifest(folder)
        certificate = json.loads((folder / CERTIFICATE_FILE).read_text(encoding="utf-8"))
        found = manifest.recipe.get("layers") or {}
        layers.plot([facts["error"] for facts in found.values()], ".-", label=folder.name)
        agreement = 100 * certificate["next_token_agreement"]
        sizes.plot(manifest.size / 1e6, agreement, "o")
        sizes.annotate(folder.name, (manifest.size / 1e6, agreement))
    layers.set(xlabel="linear layer, in their order", ylabel="relative error of the outputs")
    layers.legend()
    sizes.set(xlabel="package, MB", ylabel="same next token as the reference, %")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("packages", type=Path, nargs="+")
    args = parser.parse_args()
    plot_certificates(args.packages).savefig(args.out)


if __name__ == "__main__":
    main()
