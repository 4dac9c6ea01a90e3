"""Fuzzing with atheris, from the extra `fuzz`: can any bytes make a decoder fail?

    python -m tests.fuzz image CORPUS -max_total_time=600

The second argument is a folder that inputs which reached something new are kept in; the rest are
libFuzzer's. What made a target fail is written to the working directory, and run again with
`python -m tests.fuzz image FILE`.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import atheris

# Python code that is imported here is watched; the parsers in C and Rust are not.
with atheris.instrument_imports(include=["PIL", "phi_edge"]):
    from PIL import Image

    from .targets import TARGETS

    Image.init()  # imports a module for every format


def main() -> None:
    """Fuzz the target that the first argument names."""
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    name, place = sys.argv[1], Path(sys.argv[2])
    target, seeds = TARGETS[name]
    if not place.is_file():
        place.mkdir(parents=True, exist_ok=True)
        for index, seed in enumerate(seeds()):
            (place / f"seed-{index}").write_bytes(seed)
    logging.disable()
    # Large images are no other kind of input, and slow.
    os.environ.setdefault("PHI_EDGE_MAX_IMAGE_PIXELS", str(2**18))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
