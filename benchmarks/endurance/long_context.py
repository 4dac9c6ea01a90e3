"""Fill the whole context of a package, and show that one token more is refused.

python -m benchmarks.endurance.long_context PACKAGE
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import phi_edge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    with phi_edge.load_model(parser.parse_args().package) as model:
        info = model.manifest.model
        ids = np.random.default_rng(0).integers(3, info.vocab_size, info.context_length)
        start = time.perf_counter()
        run = model.start(phi_edge.Prompt(ids[:-1]))
        prefilled = time.perf_counter()
        logits = run.append(int(ids[-1]))
        print(f"prefill of {len(ids) - 1:,} tokens: {prefilled - start:.1f} s")
        appended = time.perf_counter()
        print(f"one more: {appended - prefilled:.3f} s, finite: {np.isfinite(logits).all()}")
        print(f"cache: {info.cache_bytes_per_token * len(ids) / 1e6:,.0f} MB")
        try:
            run.append(5)
        except phi_edge.ContextLengthError as error:
            print(f"one too many: {error}")
        else:
            sys.exit("one too many was taken")


if __name__ == "__main__":
    main()
