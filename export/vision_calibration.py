"""Which linear layers of the vision tower can be multiplied in 8 bits, and by which kernel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from phi_edge.engine.session import engine_errors
from phi_edge.engine.vision import vision_feeds
from phi_edge.image.crops import CROP_SIZE
from phi_edge.text.prompt import Prompt

from .checkpoint import Checkpoint
from .journal import Journal
from .layers import expose_inputs
from .layerwise import open_graph
from .recipe import Floats, Recipe
from .vision import build_vision, vision_linears
from .weights import Weights

# Of each image, the global crop and the first sub crop are enough.
_NUM_IMAGES, _NUM_CROPS = 8, 2
# One patch of so many is looked at: CLIP ViT-L/14-336 has 577 with the class token, the first.
_PATCH_STEP = 32


def judge_vision(
    checkpoint: Checkpoint, recipe: Recipe, prompts: Sequence[Prompt], journal: Journal
) -> dict[str, list[float]]:
    """Measure what each way to quantize a linear layer does to it, on images of the prompts.

    Args:
        checkpoint: Whose vision tower is run, in float32.
        recipe: Knows the ways to quantize one.
        prompts: Samples.
        journal: Keeps what was found.

    Returns:
        Official name (the first of those that are stacked) -> errors, as `Recipe.vision_errors`
        gives them. Nothing where there is no choice, or no image to choose by.

    Raises:
        EngineError: ONNX Runtime cannot run the vision tower.
    """
    found = {crops.digest: crops for prompt in prompts for crops in prompt.images}
    images = list(itertools.islice(found.values(), _NUM_IMAGES))
    if not images or not recipe.vision:
        return {}
    stored = journal.load("vision.facts")
    if stored is not None:
        return dict(stored.facts)

    linears = vision_linears(checkpoint.config)
    graph = build_vision(checkpoint.config, Weights(checkpoint, "float32"))
    outputs = [names[0] for names in linears]
    expose_inputs(graph, outputs, _PATCH_STEP)
    seen: dict[str, list[Floats]] = {name: [] for name in outputs}
    with open_graph(graph, journal) as session, engine_errors("running the vision tower"):
        for crops in images:
            feeds = vision_feeds(crops.pixel_values[:_NUM_CROPS], (CROP_SIZE, CROP_SIZE))
            inputs = session.run([f"{name}.input" for name in outputs], feeds)
            for name, rows in zip(outputs, inputs, strict=True):
                seen[name].append(rows.reshape(-1, rows.shape[-1]))
    errors: dict[str, list[float]] = {}
    for names in linears:
        weight = np.concatenate([checkpoint.read(f"{name}.weight") for name in names])
        errors[names[0]] = recipe.vision_errors(weight, np.concatenate(seen.pop(names[0])))
    journal.store("vision.facts", facts=errors)
    return errors
