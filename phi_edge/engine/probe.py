"""Which execution provider really works here, and which one to take."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phi_edge.engine.providers import PROVIDERS, find_provider
from phi_edge.engine.session import import_onnxruntime, open_session
from phi_edge.errors import EngineError, ProviderError

logger = logging.getLogger(__name__)

AUTO = "auto"

# Graphs with the operators that packages use, each an output under the operator's name, and
# arrays: inputs, and outputs as NumPy computes them. `export/probe.py` writes them.
PROBES = Path(__file__).parent / "probes"

# Outputs are of the order of 1. Float16, and activations in 8 bits, are off by a third of this
# at most.
PROBE_TOLERANCE = 0.05

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What came of running our operators on a provider.

    Attributes:
        problem: Why the provider cannot be used, and what to do; empty if it can.
        max_error: Largest difference of any output from NumPy's; None if there is no output.
        on_cpu: Operators that ran on the CPU instead.
    """

    problem: str = ""
    max_error: float | None = None
    on_cpu: tuple[str, ...] = ()


@functools.cache
def probe(provider: str) -> ProbeResult:
    """Run the operators of our packages on a provider, and compare with NumPy; once a process.

    Raises:
        ProviderError: There is no such provider, or no ONNX Runtime.
    """
    import_onnxruntime()
    file = PROBES / f"{find_provider(provider).probe}.onnx"
    with np.load(file.with_suffix(".npz")) as npz:
        arrays = dict(npz)
    try:
        outputs, on_cpu = _run_probe(provider, file, arrays)
    except (ProviderError, EngineError) as error:
        return ProbeResult(str(error))
    return judge(outputs, arrays, on_cpu)


def judge(outputs: Arrays, expected: Arrays, on_cpu: tuple[str, ...]) -> ProbeResult:
    """Compare a probe's outputs, each named after its operator, with what they should be."""
    errors = {
        name: float(np.abs(np.subtract(output, expected[name], dtype=np.float32)).max())
        for name, output in outputs.items()
    }
    # Not `>`: a NaN is wrong too.
    wrong = sorted(name for name, error in errors.items() if not error <= PROBE_TOLERANCE)
    problem = ""
    if wrong:
        problem = f"it computes {', '.join(wrong)} wrongly: update the device's driver"
    elif on_cpu:
        problem = f"it leaves {', '.join(on_cpu)} to the CPU"
    return ProbeResult(problem, max(errors.values()), on_cpu)


def _run_probe(
    provider: str, file: Path, arrays: Arrays
) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
    """Outputs, and which operators ran on the CPU, though another provider was asked for."""
    # A profile tells, in every release and for every provider, where an operator ran.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        session = open_session(file, provider, profile_prefix=Path(folder) / "probe")
        names = [output.name for output in session.get_outputs()]
        feeds = {given.name: arrays[given.name] for given in session.get_inputs()}
        try:
            outputs = dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:  # noqa: BLE001 - whatever a driver comes up with
            raise EngineError(f"it fails while running our operators: {error}") from None
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    on_cpu = {
        event["args"]["op_name"]
        for event in events
        if event.get("args", {}).get("provider") == PROVIDERS["cpu"].ort_name
    }
    return outputs, () if provider == "cpu" else tuple(sorted(on_cpu.intersection(names)))


@dataclasses.dataclass(frozen=True)
class ProviderChoice:
    """A provider and why it was chosen.

    Attributes:
        is_fallback: Whether it is not the one that the package was built for.
    """

    provider: str
    reason: str
    is_fallback: bool = False


def why_not(provider: str) -> str:
    """Tell why a provider cannot be used here; empty if it can."""
    # A package of others may name any.
    return probe(provider).problem if provider in PROVIDERS else "it is not known here"


def choose_provider(built_for: str, why_not: Callable[[str], str] = why_not) -> ProviderChoice:
    """Choose where a package runs: on what it was built for, or else on the CPU.

    The CPU runs the graphs of every target, though it is slow in float16. `why_not` is the place
    for conditions beyond the probe, such as the memory that a package needs.
    """
    if built_for == "cpu":
        return ProviderChoice("cpu", "the package was built for it")
    problem = why_not(built_for)
    if not problem:
        return ProviderChoice(built_for, "the package was built for it, and it passes its probe")
    reason = f"the package was built for {built_for}, which cannot be used: {problem}"
    return ProviderChoice("cpu", reason, is_fallback=True)


def resolve_provider(provider: str, built_for: str) -> str:
    """Find the provider that "auto" stands for, with the reason in the log."""
    if provider != AUTO:
        return provider
    choice = choose_provider(built_for)
    level = logging.WARNING if choice.is_fallback else logging.INFO
    logger.log(level, "running on %s: %s", choice.provider, choice.reason)
    return choice.provider
