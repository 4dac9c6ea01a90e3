"""Checkpoint -> package: reads safetensors, builds ONNX graphs, writes a package folder."""

from __future__ import annotations

from .calibration import encode_samples
from .checkpoint import Checkpoint, find_checkpoint
from .exporter import ExportProgress, export_package
from .reference import CheckpointReference

__all__ = [
    "Checkpoint",
    "CheckpointReference",
    "ExportProgress",
    "encode_samples",
    "export_package",
    "find_checkpoint",
]
