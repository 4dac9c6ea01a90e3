"""Encoding images with the vision graph."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from phi_edge import package
from phi_edge.engine.providers import PROVIDERS
from phi_edge.engine.session import run_options
from phi_edge.image.crops import ImageCrops


def vision_feeds(
    pixel_values: npt.NDArray[np.float32], image_size: tuple[int, int]
) -> dict[str, npt.NDArray[np.generic]]:
    """Make the inputs of the vision graph for one image; see `ImageCrops`."""
    return {
        package.PIXEL_VALUES: pixel_values[None],
        package.IMAGE_SIZES: np.array([image_size], np.int64),
    }


def encode_image(
    vision: Any, crops: ImageCrops, cancel: threading.Event | None = None
) -> npt.NDArray[np.float32]:
    """Encode one image with a session of the vision graph: float32 [num_tokens, hidden_size].

    Raises:
        GenerationCancelled: `cancel` was set.
        EngineError: The run failed.
    """
    feeds = vision_feeds(crops.pixel_values, crops.image_size)
    with run_options("encoding an image", cancel) as options:
        if vision.get_providers()[0] == PROVIDERS["cpu"].ort_name:
            # Activations of 17 crops take 0.7 GB, which the answer can use better.
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        (features,) = vision.run([package.IMAGE_FEATURES], feeds, options)
    return np.asarray(features, np.float32)
