"""Providers: what is probed, what is chosen, what is refused, and what the doctor says of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import phi_edge
from export.probe import PROBES as PROBE_TARGETS
from export.probe import write_probes
from phi_edge import Prompt, ProviderError, package
from phi_edge.engine import session
from phi_edge.engine.doctor import examine, find_conflicts
from phi_edge.engine.probe import PROBE_TOLERANCE, PROBES, choose_provider, judge, probe
from phi_edge.engine.providers import PROVIDERS
from phi_edge.engine.session import open_session

from .conftest import Exporter
from .helpers.cli import run_cli
from .helpers.sequences import start


def probe_arrays(name: str) -> dict[str, Any]:
    with np.load(PROBES / f"{name}.npz") as arrays:
        return dict(arrays)


# Probes


def test_probe_files_are_what_the_script_writes(tmp_path: Path) -> None:
    write_probes(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in PROBES.iterdir()}
    for path in tmp_path.glob("*.onnx"):
        assert path.read_bytes() == (PROBES / path.name).read_bytes()
    for name in PROBE_TARGETS:
        with np.load(tmp_path / f"{name}.npz") as arrays:
            expected = probe_arrays(name)
            assert set(arrays) == set(expected)
            for array in arrays:
                np.testing.assert_allclose(arrays[array], expected[array], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PROBE_TARGETS)
def test_probes_run_and_agree_with_numpy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Those for GPUs run on the CPU too."""
    cpu = PROVIDERS["cpu"]
    monkeypatch.setitem(PROVIDERS, "cpu", dataclasses.replace(cpu, probe=name))
    result = probe.__wrapped__("cpu")
    assert result.problem == ""
    assert result.max_error is not None
    assert 0 < result.max_error < PROBE_TOLERANCE / 2


@pytest.mark.parametrize(
    ("target", "provider", "probe_name"),
    [("int4", "cpu", "float32"), ("int4", "cuda", "float16"), ("int4", "dml", "float16_unfused")],
)
def test_probes_have_the_special_operators_of_packages(
    export_compact: Exporter, target: str, provider: str, probe_name: str
) -> None:
    """All that are not of the standard but the lookup of quantized rows, which is the CPU's."""

    def special(path: Path) -> set[str]:
        return {node.op_type for node in ir.load(path).graph if node.domain == "com.microsoft"}

    folder = export_compact(target, provider)
    files = package.read_manifest(folder).graph_files.values()
    used = set().union(*(special(folder / file) for file in files))
    assert used - {"GatherBlockQuantized"} == special(PROBES / f"{probe_name}.onnx")


@pytest.mark.parametrize("value", [0.2, np.nan])
def test_a_wrong_output_is_named(value: float) -> None:
    expected = {"Gelu": np.zeros(3), "MatMulNBits": np.zeros(3)}
    outputs = {"Gelu": np.zeros(3), "MatMulNBits": np.array([0, value, 0])}
    result = judge(outputs, expected, ())
    assert "computes MatMulNBits wrongly" in result.problem


def test_operators_left_to_the_cpu_are_a_problem() -> None:
    zeros = {"Gelu": np.zeros(3)}
    assert "leaves Gelu to the CPU" in judge(zeros, zeros, ("Gelu",)).problem


# Choosing and opening


def test_auto_is_what_the_package_was_built_for() -> None:
    assert choose_provider("cuda", lambda _: "").provider == "cuda"
    assert choose_provider("cpu", lambda _: "broken").provider == "cpu"


def test_auto_falls_back_to_the_cpu_with_a_warning(
    export_compact: Exporter, caplog: pytest.LogCaptureFixture
) -> None:
    with phi_edge.load_model(export_compact("int4", "cuda")) as model:
        assert np.isfinite(model.start(Prompt(np.arange(3, 9))).logits).all()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "built for cuda, which cannot be used: the installed ONNX Runtime" in record.message


class FakeOnnxRuntime:
    """ONNX Runtime with providers that are registered, and do not all start."""

    ExecutionMode = SimpleNamespace(ORT_SEQUENTIAL="sequential")

    def __init__(self, *registered: str, starts: bool = True) -> None:
        self.registered = [*registered, "CPUExecutionProvider"]
        self.starts = starts
        self.opened: list[SimpleNamespace] = []
        self.devices: list[Any] = []

    def get_available_providers(self) -> list[str]:
        return self.registered

    def get_ep_devices(self) -> list[Any]:
        return self.devices

    def SessionOptions(self) -> Any:  # noqa: N802
        options = SimpleNamespace(enable_mem_pattern=True, execution_mode="any", plugged=None)
        options.add_provider_for_devices = lambda *given: setattr(options, "plugged", given)
        return options

    def InferenceSession(  # noqa: N802
        self, path: Path, options: Any, providers: list[tuple[str, dict[str, str]]], **_: int
    ) -> Any:
        self.opened.append(SimpleNamespace(path=path, options=options, providers=providers))
        names = [name for name, _ in providers] or [self.devices[0].ep_name]
        return SimpleNamespace(get_providers=lambda: names if self.starts else names[-1:])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeOnnxRuntime:
    """One that has every provider."""
    ort = FakeOnnxRuntime(*(provider.ort_name for provider in PROVIDERS.values()))
    monkeypatch.setattr(session, "import_onnxruntime", lambda: ort)
    return ort


@pytest.mark.parametrize(
    ("provider", "options", "expected"),
    [
        ("cpu", {}, [("CPUExecutionProvider", {})]),
        (
            "cuda",
            {"device_id": 1, "gpu_mem_limit": 2**31, "arena_extend_strategy": "kSameAsRequested"},
            [
                (
                    "CUDAExecutionProvider",
                    {
                        "device_id": "1",
                        "gpu_mem_limit": "2147483648",
                        "arena_extend_strategy": "kSameAsRequested",
                    },
                ),
                ("CPUExecutionProvider", {}),
            ],
        ),
        (
            "dml",
            {"device_id": 0},
            [("DmlExecutionProvider", {"device_id": "0"}), ("CPUExecutionProvider", {})],
        ),
    ],
)
def test_options_reach_the_provider(
    fake: FakeOnnxRuntime, provider: str, options: dict[str, object], expected: object
) -> None:
    open_session(Path("x.onnx"), provider, provider_options=options)
    (opened,) = fake.opened
    assert opened.providers == expected
    # What DirectML demands.
    is_dml = provider == "dml"
    assert (opened.options.execution_mode == "sequential") == is_dml
    assert opened.options.enable_mem_pattern != is_dml


def test_a_plugin_provider_takes_its_device(fake: FakeOnnxRuntime) -> None:
    fake.devices = [SimpleNamespace(ep_name="WebGpuExecutionProvider")]
    open_session(Path("x.onnx"), "webgpu", provider_options={"adapterIndex": 1})
    (opened,) = fake.opened
    assert opened.providers == []
    assert opened.options.plugged == (fake.devices, {"adapterIndex": "1"})


def test_an_unknown_option_is_refused(fake: FakeOnnxRuntime) -> None:
    with pytest.raises(ProviderError, match=r"no option mem_limit .* gpu_mem_limit"):
        open_session(Path("x.onnx"), "cuda", provider_options={"mem_limit": 1})
    assert not fake.opened


def test_a_provider_that_does_not_start_is_an_error(fake: FakeOnnxRuntime) -> None:
    fake.starts = False
    with pytest.raises(ProviderError, match="CUDAExecutionProvider is installed but did not start"):
        open_session(Path("x.onnx"), "cuda")


def test_keys_and_values_stay_on_the_device(
    compact_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run on CUDA binds where, with a binding that only takes notes."""
    from phi_edge.engine import kv_cache, ort_step
    from phi_edge.engine.ort import OrtEngine

    made = []

    class Value:
        @staticmethod
        def ortvalue_from_numpy(array: Any, device: str = "cpu", device_id: int = 0) -> Any:
            made.append((array.shape[1:], device, device_id))
            return SimpleNamespace(numpy=lambda: array)

    bound: dict[str, Any] = {}
    binding = SimpleNamespace(
        bind_ortvalue_input=bound.__setitem__, bind_ortvalue_output=bound.__setitem__
    )
    graph = SimpleNamespace(
        io_binding=lambda: binding,
        run_with_iobinding=lambda *_: None,
        run_with_ort_values=lambda *_: ["embeds"],
    )
    ort = SimpleNamespace(OrtValue=Value)
    for module in (kv_cache, ort_step):
        monkeypatch.setattr(module, "import_onnxruntime", lambda: ort)
    monkeypatch.setattr(ort_step, "open_session", lambda *_: graph)
    manifest = package.read_manifest(compact_fp32)
    info = manifest.model
    engine = OrtEngine(compact_fp32, manifest, "cuda", provider_options={"device_id": 1})
    start(engine, np.arange(3, 9), np.empty((0, info.hidden_size), np.float32))

    cache = [entry for entry in made if entry[1] == "cuda"]
    shape = (info.num_key_value_heads, 256, info.head_size)
    assert cache == [(shape, "cuda", 1)] * 2 * info.num_hidden_layers
    pasts = [name for name in bound if name.startswith("past")]
    assert len(pasts) == 2 * info.num_hidden_layers
    for name in pasts:
        assert bound[name] is bound[name.replace("past_key_values", "present")], "in place"


# The doctor


def test_doctor_says_what_works() -> None:
    done = run_cli("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["is_well"]
    assert found["telemetry"] is False
    assert found["providers"]["cpu"]["problem"] == ""
    table = run_cli("doctor")
    assert table.returncode == 0
    assert "cpu: works" in table.stdout


def test_doctor_fails_where_the_default_does_not_work(export_compact: Exporter) -> None:
    done = run_cli("doctor", "--model", export_compact("int4", "dml"))
    assert done.returncode == 1
    assert "built for dml" in " ".join(done.stdout.split())


def test_doctor_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = examine()
    assert not found.is_well
    assert "pip install 'phi-edge[cpu]'" in found.problems[-1]


def test_flavours_that_overwrite_each_other() -> None:
    (conflict,) = find_conflicts(["onnxruntime", "onnxruntime-ep-webgpu", "onnxruntime-gpu"])
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in conflict
    assert "pip install onnxruntime-gpu" in conflict
    assert not list(find_conflicts(["onnxruntime", "onnxruntime-genai"]))
    assert list(find_conflicts(["onnxruntime-genai", "onnxruntime-genai-cuda"]))


def test_info_says_where_a_package_runs(export_compact: Exporter) -> None:
    facts = json.loads(run_cli("info", export_compact("fp16", "cuda"), "--json").stdout)
    assert facts["runs_on"].startswith("cpu: the package was built for cuda")
