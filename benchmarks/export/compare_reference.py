"""Compare size, node count and speed of a package with those of the standard export.

    python -m benchmarks.export.compare_reference CHECKPOINT PACKAGE [--json FILE]

The reference is made from the checkpoint by `reference_export` (extra `reference`) in float32. The
two sides run in turn, after a warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.timing import Work, median_ms
from phi_edge.engine.session import import_onnxruntime
from phi_edge.errors import PackageError
from phi_edge.package import DECODER, EMBEDDING, GRAPH_FILES, VISION, read_manifest

Array = npt.NDArray[Any]
Cache = dict[str, Array]

NOTES = """\
The ratio is reference / ours: above 1 ours is smaller or faster.
Our vision graph also merges the patches, places the separators and projects the features; the
reference is the bare tower.
Our text side is embedding.onnx with decoder.onnx, since the reference has both in one graph.
Our decoder.onnx holds the RoPE tables of the whole context, one row a position; the reference
computes cosines and sines in every run. The tables outweigh the weights of a tiny checkpoint.
Our decoder gives the logits of the last position only, the reference those of all.
Sizes include external data; node counts include the branches of `If`."""

WARM_UP_RUNS = 2
_CACHE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclasses.dataclass(frozen=True)
class GraphComparison:
    """Bytes on disk and number of nodes on both sides."""

    name: str
    own_bytes: int
    reference_bytes: int
    own_nodes: int
    reference_nodes: int


@dataclasses.dataclass(frozen=True)
class SpeedComparison:
    """Median milliseconds of a run on both sides."""

    name: str
    own_ms: float
    reference_ms: float

    @property
    def speedup(self) -> float:
        """How many times as fast ours is."""
        return self.reference_ms / self.own_ms


class TextModel:
    """A text decoder that starts from token ids, with logits and cache as NumPy arrays."""

    def __init__(self, decoder: Path, embedding: Path | None = None) -> None:
        """Load the graphs.

        Args:
            decoder: The decoder's ONNX file.
            embedding: The graph before it, for a decoder that takes `inputs_embeds`.
        """
        self._decoder = load_session(decoder)
        self._embedding = load_session(embedding) if embedding else None
        self._input_names = {item.name for item in self._decoder.get_inputs()}
        self._output_names = [item.name for item in self._decoder.get_outputs()]

    def empty_cache(self) -> Cache:
        """Make keys and values of no tokens, each [1, kv_heads, 0, head_dim]."""
        return {
            item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), _CACHE_TYPES[item.type])
            for item in self._decoder.get_inputs()
            if item.name.startswith("past_key_values.")
        }

    def run(self, token_ids: Sequence[int] | Array, past: Cache) -> tuple[Array, Cache]:
        """Run some tokens after those in the cache.

        Args:
            token_ids: The new tokens, S of them.
            past: The cache, each array [1, kv_heads, P, head_dim].

        Returns:
            The logits of the last token [vocab], and the cache with P + S tokens.
        """
        ids = np.asarray(token_ids, np.int64)[None]
        num_past = next(iter(past.values())).shape[2]
        total = num_past + ids.shape[1]
        feeds = {**past, "attention_mask": np.ones((1, total), np.int64)}
        if self._embedding is None:
            feeds["input_ids"] = ids
        else:
            feeds["inputs_embeds"] = self._embed(self._embedding, ids)
        if "position_ids" in self._input_names:
            feeds["position_ids"] = np.arange(num_past, total, dtype=np.int64)[None]
        outputs = dict(zip(self._output_names, self._decoder.run(None, feeds), strict=True))
        logits: Array = outputs.pop("logits")[0, -1]
        present = {
            name.replace("present.", "past_key_values."): array for name, array in outputs.items()
        }
        return logits, present

    @staticmethod
    def _embed(session: Any, ids: Array) -> Array:
        features = next(item for item in session.get_inputs() if item.name == "image_features")
        no_image = np.zeros((0, features.shape[1]), _CACHE_TYPES[features.type])
        embeds: Array = session.run(None, {"input_ids": ids, "image_features": no_image})[0]
        return embeds


def load_session(path: Path) -> Any:
    """Open an ONNX Runtime session on the CPU, with the default number of threads."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    # Threads spin for a while after a run by default, and would slow the other side's run down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load_own_text(package: Path) -> TextModel:
    """Load the text side of a package."""
    return TextModel(package / GRAPH_FILES[DECODER], package / GRAPH_FILES[EMBEDDING])


def graph_bytes(path: Path) -> int:
    """Count the bytes of an ONNX file and of the data beside it, whose name is longer."""
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))


def count_nodes(path: Path) -> int:
    """Count the nodes of a graph and of the subgraphs inside its nodes."""

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(
            1 + sum(count(attribute.g.node) for attribute in node.attribute) for node in nodes
        )

    return count(onnx.load(path, load_external_data=False).graph.node)


def compare_graphs(name: str, own: Sequence[Path], reference: Path) -> GraphComparison:
    """Compare the files of some of our graphs with the one that does the same on the other side."""
    return GraphComparison(
        name,
        own_bytes=sum(map(graph_bytes, own)),
        reference_bytes=graph_bytes(reference),
        own_nodes=sum(map(count_nodes, own)),
        reference_nodes=count_nodes(reference),
    )


def compare_speed(name: str, own: Work, reference: Work, runs: int) -> SpeedComparison:
    """Time two functions in turn, after a warm-up."""
    own_ms, reference_ms = median_ms((own, reference), runs, warm_up_rounds=WARM_UP_RUNS)
    return SpeedComparison(name, own_ms, reference_ms)


def compare_towers(own: Path, reference: Path, runs: int) -> SpeedComparison:
    """Time both towers on the two crops of the smallest image, one global and one sub crop."""
    own_session, reference_session = load_session(own), load_session(reference)
    pixel_values = next(i for i in own_session.get_inputs() if i.name == "pixel_values")
    crops = np.random.default_rng(0).standard_normal((2, 3, 336, 336)).astype(np.float32)
    own_feeds = {
        "pixel_values": crops[None].astype(_CACHE_TYPES[pixel_values.type]),
        "image_sizes": np.array([[336, 336]], np.int64),
    }
    return compare_speed(
        "tower, 2 crops",
        lambda: own_session.run(["image_features"], own_feeds),
        lambda: reference_session.run(["last_hidden_state"], {"pixel_values": crops}),
        runs,
    )


def compare_decoders(
    own: TextModel, reference: TextModel, prompt_tokens: int, runs: int
) -> list[SpeedComparison]:
    """Time the prefill of a prompt, and one decode step after it."""
    prompt = [1] * prompt_tokens  # the values do not matter to the speed
    own_past = own.run(prompt, own.empty_cache())[1]
    reference_past = reference.run(prompt, reference.empty_cache())[1]
    return [
        compare_speed(
            f"decoder, prefill of {prompt_tokens} tokens",
            lambda: own.run(prompt, own.empty_cache()),
            lambda: reference.run(prompt, reference.empty_cache()),
            runs,
        ),
        compare_speed(
            f"decoder, step after {prompt_tokens} tokens",
            lambda: own.run([1], own_past),
            lambda: reference.run([1], reference_past),
            runs,
        ),
    ]


def format_report(graphs: Sequence[GraphComparison], speeds: Sequence[SpeedComparison]) -> str:
    """Format a text table with a row for every figure."""
    header = f"{'ours':>12} {'reference':>12} {'ratio':>8}"
    lines = [f"{'':34} {header}"]
    for graph in graphs:
        for unit, own, reference in (
            ("bytes", graph.own_bytes, graph.reference_bytes),
            ("nodes", graph.own_nodes, graph.reference_nodes),
        ):
            label = f"{graph.name}, {unit}"
            lines.append(f"{label:34} {own:12,} {reference:12,} {reference / own:8.2f}")
    for speed in speeds:
        label = f"{speed.name}, ms"
        figures = f"{speed.own_ms:12.2f} {speed.reference_ms:12.2f} {speed.speedup:8.2f}"
        lines.append(f"{label:34} {figures}")
    return "\n".join([*lines, "", NOTES])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a Phi-3.5-vision checkpoint")
    parser.add_argument("package", type=Path, help="package that was exported from it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--runs", type=int, default=20, help="runs of each side (default: 20)")
    parser.add_argument(
        "--prompt-tokens", type=int, default=128, help="length of the prompt (default: 128)"
    )
    args = parser.parse_args()
    if args.runs < 1 or args.prompt_tokens < 1:
        parser.error("--runs and --prompt-tokens have to be at least 1")
    try:
        precision = read_manifest(args.package).precision
    except PackageError as error:
        parser.error(str(error))
    try:
        from .reference_export import export_decoder, export_tower
    except ModuleNotFoundError as error:
        parser.error(f"{error}: this needs `pip install 'phi-edge[reference]'`")

    vision, embedding, own_decoder = (
        args.package / GRAPH_FILES[role] for role in (VISION, EMBEDDING, DECODER)
    )
    with tempfile.TemporaryDirectory() as temporary:
        tower = export_tower(args.checkpoint, Path(temporary, "tower"))
        decoder = export_decoder(args.checkpoint, Path(temporary, "decoder"))
        graphs = [
            compare_graphs("tower", [vision], tower),
            compare_graphs("decoder", [embedding, own_decoder], decoder),
        ]
        own_text, reference_text = load_own_text(args.package), TextModel(decoder)
        speeds = [
            compare_towers(vision, tower, args.runs),
            *compare_decoders(own_text, reference_text, args.prompt_tokens, args.runs),
        ]

    print(f"ours: {precision}, reference: fp32, median of {args.runs} runs\n")
    print(format_report(graphs, speeds))
    if args.json:
        figures = {
            "precision": precision,
            "runs": args.runs,
            "graphs": [dataclasses.asdict(graph) for graph in graphs],
            "speeds": [{**dataclasses.asdict(speed), "speedup": speed.speedup} for speed in speeds],
            "notes": NOTES.splitlines(),
            "onnxruntime": import_onnxruntime().__version__,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
