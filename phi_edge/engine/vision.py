"""Encoding images with the vision graph."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phi_edge import package
from phi_edge.engine.providers import PROVIDERS
from phi_edge.engine.session import numpy_dtype, open_session, run_options
from phi_edge.errors import EngineError, OutOfMemoryError
from phi_edge.image.crops import MOST_AUTO_CROPS, ImageCrops
from phi_edge.package import Package, PublishedPackage

logger = logging.getLogger(__name__)

# Crops of the largest images, the global one included. Some graphs of others take no other number.
_ALL_CROPS = MOST_AUTO_CROPS + 1


def vision_feeds(
    pixel_values: npt.NDArray[np.floating[Any]], image_size: tuple[int, int]
) -> dict[str, npt.NDArray[np.generic]]:
    """Make the inputs of the vision graph for one image; see `ImageCrops`."""
    return {
        package.PIXEL_VALUES: pixel_values[None],
        package.IMAGE_SIZES: np.array([image_size], np.int64),
    }


def encode_image(
    vision: Any, crops: ImageCrops, cancel: threading.Event | None = None, min_crops: int = 0
) -> npt.NDArray[np.float32]:
    """Encode one image with a session of the vision graph: float32 [num_tokens, hidden_size].

    The graph is given at least `min_crops`. It leaves out those that this adds, which are empty.

    Raises:
        GenerationCancelled: `cancel` was set.
        EngineError: The run failed.
    """
    (pixels,) = (given for given in vision.get_inputs() if given.name == package.PIXEL_VALUES)
    pixel_values = crops.pixel_values.astype(numpy_dtype(pixels), copy=False)
    if (num_empty := min_crops - len(pixel_values)) > 0:
        pixel_values = np.pad(pixel_values, ((0, num_empty), (0, 0), (0, 0), (0, 0)))
    with run_options("encoding an image", cancel) as options:
        if vision.get_providers()[0] == PROVIDERS["cpu"].ort_name:
            # Activations of 17 crops take 0.7 GB, which the answer can use better.
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        (features,) = vision.run(None, vision_feeds(pixel_values, crops.image_size), options)
    # Some graphs have a dimension for the image before.
    return np.asarray(features, np.float32).reshape(-1, features.shape[-1])


class VisionEncoder:
    """The vision graph of a package, which is opened when the first image comes."""

    def __init__(
        self,
        folder: Path,
        manifest: Package,
        provider: str,
        num_threads: int | None = None,
        provider_options: Mapping[str, object] | None = None,
    ) -> None:
        path = folder / manifest.graph_files[package.VISION]
        self._open = partial(open_session, path, provider, num_threads, provider_options)
        self._min_crops, self._takes_any_number = 0, True
        if isinstance(manifest, PublishedPackage):
            self._min_crops, self._takes_any_number = manifest.min_crops, False

    @cached_property
    def session(self) -> Any:
        """A session of the graph."""
        return self._open()

    def encode(
        self, crops: ImageCrops, cancel: threading.Event | None = None
    ) -> npt.NDArray[np.float32]:
        """Encode one image; see `encode_image`.

        A graph of others that refuses the first image is given as many crops as the largest image
        has, for this one and all that follow.
        """
        session = self.session
        try:
            features = encode_image(session, crops, cancel, self._min_crops)
        except OutOfMemoryError:
            raise
        except EngineError as error:
            if self._takes_any_number or len(crops.pixel_values) >= _ALL_CROPS:
                raise
            try:
                features = encode_image(session, crops, cancel, _ALL_CROPS)
            except EngineError:
                raise error from None
            logger.info("the vision graph takes %d crops alone: images are padded", _ALL_CROPS)
            self._min_crops = _ALL_CROPS
        self._takes_any_number = True  # or what it takes is known
        return features

    def close(self) -> None:
        """Free the graph."""
        self.__dict__.pop("session", None)
