"""What scripts need that start processes and measure them. The standard library only."""

from __future__ import annotations

import os
import sys


def peer_environment() -> dict[str, str]:
    """Copy the environment for another Python, whose packages a PYTHONPATH of ours does not fit."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def rss_bytes(ru_maxrss: int) -> int:
    """Convert the peak RSS of a `struct_rusage`: macOS gives bytes, Linux KiB."""
    return ru_maxrss if sys.platform == "darwin" else 1024 * ru_maxrss
