"""Compare memory, time and size of an export with those of onnxruntime-genai's model builder.

    python -m benchmarks.export.compare_export CHECKPOINT WORKDIR [--peer-python PATH] [--runs N]

Each export is a process of its own. The peer is the Python of an environment with
onnxruntime-genai and what its builder needs: onnx-ir, torch, transformers. It cannot load a
Phi-3-vision checkpoint without running the checkpoint's own code, so it gets the text decoder as a
plain Phi-3 folder. No file of weights is copied for that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.processes import peer_environment, rss_bytes

from .phi3v_config import read_config

# The standard library only: on Linux a new process counts the peak RSS of the one that started
# it as its own, so this one has to stay small.

NOTES = (
    "The ratio is peer / ours: above 1 ours takes less.",
    "The peer converts the text decoder only, ours also the vision tower and the embedding.",
    "Text graphs: decoder and embedding; the peer has both in one. Package: all its files.",
    "Peak RSS includes mapped pages of the checkpoint's files.",
    "A peak near the size of RAM is a lower bound: the system drops mapped pages to make room.",
    "Wall time includes starting Python. A first run may find fewer files in the page cache.",
)

# Fields that only concern the image part or the checkpoint's own code, or name an attention kernel
# for GPUs. All others are Phi-3's.
_OTHER_FIELDS = ("auto_map", "embd_layer", "img_processor", "_attn_implementation")
_VISION_PREFIX = "model.vision_embed_tokens."
_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
_PEER_PACKAGES = ("onnxruntime-genai", "onnx-ir", "onnxruntime", "torch", "transformers")
_PRINT_VERSIONS = """\
import importlib.metadata, json, platform, sys
versions = {name: importlib.metadata.version(name) for name in sys.argv[1:]}
print(json.dumps({"python": platform.python_version(), **versions}))
"""


@dataclasses.dataclass(frozen=True)
class Exporter:
    """A command that writes a package.

    Attributes:
        out: Folder that the command writes.
        text_graphs: Glob patterns of the files with the decoder and the embedding.
        environment: Variables of the process.
    """

    name: str
    command: Sequence[str]
    out: Path
    text_graphs: Sequence[str]
    environment: Mapping[str, str]

    @property
    def log(self) -> Path:
        """File with what the command printed in its last run."""
        return self.out.with_suffix(".log")


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one run took, or several: the highest peak, the median time, the last sizes.

    Attributes:
        peak_rss_bytes: Most memory that was resident at a time, up to the end however it came.
        package_bytes: Size of all files, or of those that a failed run left.
        text_bytes: Size of the files with the decoder and the embedding.
    """

    peak_rss_bytes: int
    wall_seconds: float
    package_bytes: int
    text_bytes: int


@dataclasses.dataclass(frozen=True)
class Run(Figures):
    """One run.

    Attributes:
        exit_status: 0 if all went well; -N if signal N ended the process.
    """

    exit_status: int

    @property
    def outcome(self) -> str:
        """How the process ended, in words."""
        if self.exit_status >= 0:
            return f"exit status {self.exit_status}"
        ended_by = signal.Signals(-self.exit_status)
        hint = ", by the system if memory ran out" if ended_by == signal.SIGKILL else ""
        return f"exit status {self.exit_status}: killed by {ended_by.name}{hint}"


def own_exporter(checkpoint: Path, workdir: Path) -> Exporter:
    """Describe `phi-edge export` of this Python."""
    out = workdir / "ours"
    command = (sys.executable, "-m", "phi_edge", "export", str(checkpoint), str(out))
    # The peer's default is not calibrated, so ours is not either.
    options = ("--method", "nearest", "--block-size", "32", "--no-certify")
    text_graphs = ("decoder.onnx*", "embedding.onnx*")
    return Exporter("ours", (*command, *options), out, text_graphs, dict(os.environ))


def peer_exporter(python: Path, text_checkpoint: Path, workdir: Path) -> Exporter:
    """Describe the model builder of onnxruntime-genai in another Python."""
    out = workdir / "peer"
    command = (str(python), "-m", "onnxruntime_genai.models.builder")
    folders = ("-i", str(text_checkpoint), "-o", str(out), "-c", str(workdir / "peer_cache"))
    options = ("-p", "int4", "-e", "cpu")
    # All that it needs is in the folder; a request to the hub would count as its time.
    environment = {**peer_environment(), "HF_HUB_OFFLINE": "1"}
    return Exporter("peer", (*command, *folders, *options), out, ("model.onnx*",), environment)


def write_text_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Write a Phi-3 folder with the text decoder of a Phi-3-vision checkpoint.

    The files of weights are linked, and the index lists the text tensors only. Their names are
    Phi-3's already.

    Args:
        checkpoint: Folder with `config.json`, the tokenizer and `*.safetensors`.
        folder: Where to write; must not exist.
    """
    folder.mkdir()
    config = read_config(checkpoint)
    fields = {name: value for name, value in config.items() if name not in _OTHER_FIELDS}
    fields |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    # The default is a token that a small vocabulary does not have.
    fields.setdefault("pad_token_id", None)
    if fields.get("rope_scaling"):
        # Phi-3-vision's "su" is an older name of the same thing.
        fields["rope_scaling"] = {**fields["rope_scaling"], "type": "longrope"}
    (folder / "config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")

    for name in _TEXT_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    weight_map: dict[str, str] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        names = [name for name in _tensor_names(shard) if not name.startswith(_VISION_PREFIX)]
        if names:
            (folder / shard.name).symlink_to(shard)
            weight_map |= dict.fromkeys(names, shard.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2), encoding="utf-8"
    )


def _tensor_names(shard: Path) -> list[str]:
    """List the names in a safetensors file: https://huggingface.co/docs/safetensors, "Format"."""
    with shard.open("rb") as file:
        header: dict[str, object] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


def run_once(exporter: Exporter) -> Run:
    """Run a command in a process of its own, and measure that process alone."""
    shutil.rmtree(exporter.out, ignore_errors=True)
    start = time.perf_counter()
    with (
        exporter.log.open("wb") as log,
        subprocess.Popen(  # noqa: S603 - the user's own command
            exporter.command, stdout=log, stderr=subprocess.STDOUT, env=exporter.environment
        ) as process,
    ):
        # Popen.wait() would drop the resource usage.
        _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    return Run(
        exit_status=process.returncode,
        peak_rss_bytes=rss_bytes(usage.ru_maxrss),
        wall_seconds=wall_seconds,
        package_bytes=_bytes_of(exporter.out, ["**/*"]),
        text_bytes=_bytes_of(exporter.out, exporter.text_graphs),
    )


def _bytes_of(folder: Path, patterns: Sequence[str]) -> int:
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sum(file.stat().st_size for file in files)


def run_in_turn(exporters: Sequence[Exporter], num_runs: int) -> dict[str, list[Run]]:
    """Run each command some times, in turn. One that failed is not run again."""
    runs: dict[str, list[Run]] = {exporter.name: [] for exporter in exporters}
    for number in range(1, num_runs + 1):
        for exporter in exporters:
            if find_failure(runs[exporter.name]):
                continue
            print(f"{exporter.name}, run {number} of {num_runs} ...", file=sys.stderr, flush=True)
            runs[exporter.name].append(run_once(exporter))
    return runs


def find_failure(runs: Sequence[Run]) -> Run | None:
    """Find the run that failed, if one did."""
    return next((run for run in runs if run.exit_status != 0), None)


def summarize(runs: Sequence[Run]) -> Figures | None:
    """Sum up the runs of a side that never failed."""
    if not runs or find_failure(runs):
        return None
    return Figures(
        peak_rss_bytes=max(run.peak_rss_bytes for run in runs),
        wall_seconds=statistics.median(run.wall_seconds for run in runs),
        package_bytes=runs[-1].package_bytes,
        text_bytes=runs[-1].text_bytes,
    )


def compute_ratios(own: Figures | None, peer: Figures | None) -> dict[str, float]:
    """Divide the peer's figures by ours; empty when one side has none."""
    if own is None or peer is None:
        return {}
    own_figures = dataclasses.asdict(own)
    return {name: value / own_figures[name] for name, value in dataclasses.asdict(peer).items()}


def format_report(own: Figures | None, peer: Figures | None) -> str:
    """Format a text table with a row for every figure."""
    ratios = compute_ratios(own, peer)
    lines = [f"{'':20} {'ours':>16} {'peer':>16} {'ratio':>8}"]
    for label, name, form in (
        ("peak RSS, bytes", "peak_rss_bytes", ",d"),
        ("wall time, s", "wall_seconds", ",.1f"),
        ("package, bytes", "package_bytes", ",d"),
        ("text graphs, bytes", "text_bytes", ",d"),
    ):
        cells = [format(getattr(side, name), form) if side else "-" for side in (own, peer)]
        ratio = format(ratios[name], ".2f") if ratios else "-"
        lines.append(f"{label:20} {cells[0]:>16} {cells[1]:>16} {ratio:>8}")
    return "\n".join([*lines, "", *NOTES])


def format_failure(exporter: Exporter, run: Run) -> str:
    """Tell what is known of a run that failed."""
    return (
        f"{exporter.name} FAILED: {run.outcome}; {run.wall_seconds:,.1f} s and a peak RSS of "
        f"{run.peak_rss_bytes:,} bytes until then; see {exporter.log}"
    )


def read_peer_versions(python: Path) -> dict[str, str]:
    """Read the versions of the peer's Python and of the packages that count.

    Raises:
        ValueError: It is not a Python that has them all.
    """
    command = [str(python), "-c", _PRINT_VERSIONS, *_PEER_PACKAGES]
    try:
        done = subprocess.run(  # noqa: S603 - the user's own command
            command, check=True, capture_output=True, text=True
        )
    except OSError as error:
        raise ValueError(f"{python}: {error}") from None
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.strip().rpartition("\n")[2]
        raise ValueError(f"{python}: {last_line}") from None
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def parse_arguments() -> argparse.Namespace:
    """Read the command line, and make its paths absolute."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a Phi-3.5-vision checkpoint")
    parser.add_argument("workdir", type=Path, help="folder for the packages; new or empty")
    parser.add_argument(
        "--peer-python", type=Path, metavar="PATH", help="Python with onnxruntime-genai and torch"
    )
    parser.add_argument("--runs", type=int, default=1, help="exports of each side (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args()
    if not hasattr(os, "wait4"):
        parser.error("this system does not tell the memory use of a process that ended")
    if args.runs < 1:
        parser.error("--runs has to be at least 1")
    # Not resolve(): the Python of a virtual environment is a link to one outside.
    args.checkpoint, args.workdir = args.checkpoint.absolute(), args.workdir.absolute()
    try:
        read_config(args.checkpoint)
        args.peer_versions = read_peer_versions(args.peer_python) if args.peer_python else {}
        args.workdir.mkdir(parents=True, exist_ok=True)
        if any(args.workdir.iterdir()):
            parser.error(f"{args.workdir} is not empty")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def main() -> None:
    """Run the command; exit with 1 if an export failed."""
    args = parse_arguments()
    exporters = [own_exporter(args.checkpoint, args.workdir)]
    if args.peer_python:
        text_checkpoint = args.workdir / "text_checkpoint"
        write_text_checkpoint(args.checkpoint, text_checkpoint)
        exporters.append(peer_exporter(args.peer_python, text_checkpoint, args.workdir))

    runs = run_in_turn(exporters, args.runs)
    own, peer = summarize(runs["ours"]), summarize(runs.get("peer", []))
    failures = [
        format_failure(exporter, run)
        for exporter in exporters
        if (run := find_failure(runs[exporter.name]))
    ]

    print(f"int4 for cpu, highest peak and median time of the runs ({args.runs} asked for)")
    if args.peer_versions:
        versions = ", ".join(f"{name} {version}" for name, version in args.peer_versions.items())
        print(f"peer: model builder of onnxruntime-genai; {versions}")
    print(f"\n{format_report(own, peer)}")
    if failures:
        print("\n" + "\n".join(failures))
    if args.json:
        figures = {
            "runs": {side: list(map(dataclasses.asdict, done)) for side, done in runs.items()},
            "ratios": compute_ratios(own, peer),
            "failures": failures,
            "peer_versions": args.peer_versions,
            "notes": NOTES,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
