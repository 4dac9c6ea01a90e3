"""Writes a package: graphs with their weights, tokenizer, configurations, manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from phi_edge import __version__, package
from phi_edge.engine.providers import TARGETS, find_provider
from phi_edge.errors import CheckpointError
from phi_edge.text.prompt import Prompt

from .calibration import calibrate
from .checkpoint import TOKENIZER_FILES, Checkpoint
from .config import read_json
from .decoder import build_decoder
from .embedding import build_embedding
from .findings import Findings
from .genai import genai_config, processor_config
from .journal import Journal, clear_journal
from .lock import hold
from .prequantized import GROUP, check_kernels, describe_recipe
from .recipe import Recipe
from .target import beside, check_target, clear_up, replacing
from .vision import build_vision
from .weights import Weights

logger = logging.getLogger(__name__)

# Tokens that end an answer of this model family, when generation_config.json does not say.
_END_TOKENS = ("<|end|>", "<|assistant|>", "<|endoftext|>")

# Tensors up to this size stand in the graph file, as ONNX Runtime wants shapes to.
_INLINE_BYTES = 256

_VERSIONED = ("onnx-ir", "onnxscript", "numpy")


@dataclasses.dataclass(frozen=True)
class ExportProgress:
    """How far an export has come.

    Attributes:
        stage: "calibrating", which takes most of the time where a recipe wants it, or "writing".
        item: The layer that is calibrated, or the tensor that is written, next.
        num_items, total_items: Layers or tensors that are done, and all.
        num_bytes, total_bytes: The same in bytes of the package, while writing.
    """

    stage: Literal["calibrating", "writing"]
    item: str
    num_items: int
    total_items: int
    num_bytes: int = 0
    total_bytes: int = 0


ShowProgress = Callable[[ExportProgress], None]


def export_package(
    checkpoint: Checkpoint,
    target: Path,
    recipe: Recipe,
    *,
    provider: str = "cpu",
    overwrite: bool = False,
    samples: Sequence[Prompt] = (),
    progress: ShowProgress = lambda _: None,
) -> package.Manifest:
    """Export a checkpoint.

    Everything is written to a temporary folder beside the target, which is renamed at the very
    end: an export that is interrupted, or killed, leaves no part of a package behind, and the next
    one clears up.

    Args:
        checkpoint: What to export.
        target: Package folder to make.
        recipe: How to store the weights, from `quantize.make_recipe`.
        provider: Execution provider to build the graphs for, one of `TARGETS`.
        overwrite: Replace a package that is already at the target.
        samples: Prompts, with their answers, to run the checkpoint on where the recipe wants
            calibration. What is done is kept beside the target until the package is complete.
        progress: Called before each layer is calibrated and each tensor is written.

    Raises:
        ValueError: There are no samples, and the recipe wants calibration.
        PackageError: The target exists and is not to be, or cannot be, replaced; or another export
            to it is under way.
        CheckpointError: A tensor cannot be read or stored in the wanted type.
    """
    if provider not in TARGETS:
        raise ValueError(f"provider must be one of {', '.join(TARGETS)}, not {provider!r}")
    with hold(target):
        clear_up(target)
        check_target(target, overwrite=overwrite)
        model = _model_config(checkpoint, recipe)
        if checkpoint.layout and recipe.quantizer(GROUP, ""):
            has_kernels = find_provider(provider).has_int8_kernels
            check_kernels(checkpoint.layout, has_int8_kernels=has_kernels)
        findings = None
        if recipe.is_calibrated:
            journal = _open_journal(checkpoint, target, recipe, samples)

            def show(*state: Any) -> None:
                progress(ExportProgress("calibrating", *state))

            findings = calibrate(checkpoint, recipe, samples, journal, show)
        with replacing(target) as folder:
            manifest = _write_package(
                checkpoint, folder, model, recipe, provider, findings, progress
            )
        # That of this export, or of an earlier one to the same target that was given up.
        clear_journal(beside(target, "calibration"))
    logger.info("wrote %s (%.2f GB)", target, manifest.size / 1e9)
    return manifest


def _write_package(
    checkpoint: Checkpoint,
    folder: Path,
    model: package.ModelConfig,
    recipe: Recipe,
    provider: str,
    findings: Findings | None,
    progress: ShowProgress,
) -> package.Manifest:
    """Write all files of a package into an empty folder."""
    if findings:
        recipe = recipe.for_vision(findings.vision_errors)
    weights = Weights(checkpoint, recipe.float_dtype, recipe, findings)
    fused_rotary = find_provider(provider).fuses_rotary
    graphs = {
        package.DECODER: build_decoder(checkpoint.config, weights, fused_rotary=fused_rotary),
        package.EMBEDDING: build_embedding(checkpoint.config, weights),
        package.VISION: build_vision(checkpoint.config, weights),
    }
    if prefill_recipe := recipe.for_prefill(findings.without_channels if findings else []):
        weights = Weights(checkpoint, recipe.float_dtype, prefill_recipe, findings)
        graphs[package.PREFILL] = build_decoder(checkpoint.config, weights, fused_rotary=True)
    with ThreadPoolExecutor(1) as hasher:
        source = hasher.submit(_describe, checkpoint.files)
        _write_graphs(graphs, folder, progress)
        for name in TOKENIZER_FILES:
            shutil.copyfile(checkpoint.folder / name, folder / name)
        _write_json(folder / package.GENAI_CONFIG_FILE, genai_config(model, provider))
        _write_json(folder / package.PROCESSOR_CONFIG_FILE, processor_config(model))
        manifest = package.Manifest(
            format_version=package.FORMAT_VERSION,
            name=checkpoint.config.name,
            provider=provider,
            precision=recipe.precision,
            model=model,
            recipe={
                **describe_recipe(recipe.as_dict(), checkpoint.layout),
                "layers": findings.as_dict() if findings else {},
                "vision_errors": findings.vision_errors if findings else {},
            },
            source=source.result(),
            versions={"phi-edge": __version__, **{name: version(name) for name in _VERSIONED}},
            files=_describe(sorted(folder.iterdir())),
        )
        package.write_manifest(folder, manifest)
    return manifest


def _open_journal(
    checkpoint: Checkpoint, target: Path, recipe: Recipe, samples: Sequence[Prompt]
) -> Journal:
    """Open the journal of a calibrated export."""
    if not samples:
        raise ValueError("this recipe wants calibration, so it wants samples")
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.input_ids.tobytes())
        for crops in sample.images:
            digest.update(crops.digest)
    stats = {str(path): path.stat() for path in checkpoint.files}
    job = {
        "version": __version__,
        "recipe": recipe.as_dict(),
        "samples": digest.hexdigest(),
        "checkpoint": {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()},
    }
    return Journal(beside(target, "calibration"), job)


def _describe(files: Sequence[Path]) -> dict[str, package.FileEntry]:
    return {path.name: package.describe_file(path) for path in files}


def _write_graphs(graphs: dict[str, ir.Model], folder: Path, progress: ShowProgress) -> None:
    tensors = [
        value.const_value
        for graph in graphs.values()
        for value in graph.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > _INLINE_BYTES
    ]
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    state = ExportProgress("writing", "", 0, len(tensors), 0, num_bytes)

    def report(tensor: ir.TensorProtocol, _: ir.external_data.CallbackInfo) -> None:
        nonlocal state
        state = dataclasses.replace(state, item=tensor.name or "")
        progress(state)
        state = dataclasses.replace(
            state,
            num_items=state.num_items + 1,
            num_bytes=state.num_bytes + tensor.nbytes,
        )

    try:
        for role, graph in graphs.items():
            ir.save(
                graph,
                folder / package.GRAPH_FILES[role],
                external_data=package.weights_file(role),
                size_threshold_bytes=_INLINE_BYTES,
                callback=report,
            )
    except ir.serde.SerdeError as error:
        # What went wrong in a small tensor is wrapped several times.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _model_config(checkpoint: Checkpoint, recipe: Recipe) -> package.ModelConfig:
    config, tokenizer = checkpoint.config, checkpoint.read_tokenizer()
    found = {token: tokenizer.token_to_id(token) for token in ("<s>", *_END_TOKENS)}
    special = {token: token_id for token, token_id in found.items() if token_id is not None}
    missing = [token for token in found if token not in special]
    if missing or tokenizer.get_vocab_size() > config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.folder / package.TOKENIZER_FILE} is not this checkpoint's tokenizer: "
            + (f"it has no {', '.join(missing)}" if missing else "it has too many tokens")
        )
    images = checkpoint.image_settings()
    return package.ModelConfig(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_size=config.head_size,
        context_length=config.max_position_embeddings,
        original_context_length=config.original_max_position_embeddings,
        io_dtype=recipe.float_dtype,
        cache_dtype=recipe.float_dtype if recipe.cache_dtype == "float" else recipe.cache_dtype,
        bos_token_id=special["<s>"],
        eos_token_ids=_eos_token_ids(checkpoint, [special[token] for token in _END_TOKENS]),
        pad_token_id=special["<|endoftext|>"],
        num_crops=images.num_crops,
        image_mean=images.mean,
        image_std=images.std,
    )


def _eos_token_ids(checkpoint: Checkpoint, default: list[int]) -> tuple[int, ...]:
    path = checkpoint.folder / "generation_config.json"
    if not path.is_file():
        return tuple(default)
    listed = read_json(path).get("eos_token_id", [])
    listed = listed if isinstance(listed, list) else [listed]
    return tuple(dict.fromkeys([*listed, *default]))
