"""Read a checkpoint's configuration with the standard library alone.

The exporter's own reader is not used: what comparisons run must not share its mistakes, nor load
its libraries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        ValueError: It is not JSON, or describes another architecture.
        OSError: It cannot be read.
    """
    path = checkpoint / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") != "phi3_v":
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r}, not 'phi3_v'")
    return config
