"""Where packages are put: whatever is killed, and whenever, nothing is lost and nothing is half."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import Checkpoint, CheckpointReference, export_package
from export.journal import Journal, clear_journal
from export.lock import hold
from export.target import clear_up, replacing
from phi_edge import PackageError, Prompt, package
from phi_edge.cli import export as commands
from phi_edge.evaluation.certify import certify
from quantize import make_recipe

from .conftest import Exporter
from .helpers.sequences import random_ids

ROOT = Path(__file__).parents[1]
FP32 = make_recipe("fp32", "cpu")


@pytest.fixture(scope="module")
def trials(
    compact_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Jobs that were killed at a few points, and again when they cleared up after that; the
    benchmark can try all points.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork and SIGKILL")
    command = [
        "benchmarks.endurance.kill_points",
        compact_checkpoint,
        tmp_path_factory.mktemp("killed"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command), "--points", "3", "--twice", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        # More threads are no good company for `fork`.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("job", "before"),
    [
        ("export", "absent"),
        ("export that replaces a package", "old"),
        ("calibrated export", "absent"),
        ("download from a hub", "absent"),
        ("file of the disk cache", "old"),
    ],
)
def test_a_killed_job_leaves_all_or_nothing_and_the_next_run_completes_it(
    trials: list[dict[str, Any]], job: str, before: str
) -> None:
    found = [trial for trial in trials if trial["job"] == job]
    assert len(found) == 3
    for trial in found:
        assert trial["problem"] is None, trial
        assert len(trial["states"]) == len(trial["points"]) == 2
        assert set(trial["states"]) <= {before, "new", "absent"}
    assert any(before in trial["states"] for trial in found)


def write(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / package.MANIFEST_FILE).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: (path / package.MANIFEST_FILE).read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ({}, {}),
        ({".out.partial": "half"}, {}),
        ({"out": "old", ".out.partial": "half"}, {"out": "old"}),
        # Between the two renames.
        ({".out.replaced": "old", ".out.partial": "new"}, {"out": "old"}),
        # After them.
        ({"out": "new", ".out.replaced": "old"}, {"out": "new"}),
        # After them, while the old one was removed; then the user deleted the new one.
        ({".out.replaced": "half"}, {}),
    ],
)
def test_what_a_killed_export_left_is_put_right(
    tmp_path: Path, found: dict[str, str], left: dict[str, str]
) -> None:
    for name, text in found.items():
        write(tmp_path / name, text)
    clear_up(tmp_path / "out")
    assert contents(tmp_path) == left


@pytest.mark.parametrize("last", ["out", ".out.partial"])
def test_an_interrupt_right_after_a_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """The package that is there is whole: the old one after the first, the new one after both."""
    write(tmp_path / "out", "old")
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        if path.name == last:
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "out") as folder:
        (folder / package.MANIFEST_FILE).write_text("new")
    assert contents(tmp_path) == {"out": "old" if last == "out" else "new"}


def test_one_export_at_a_time(
    compact_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second touches nothing, says who was first, and the lock leaves no trace."""
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    monkeypatch.chdir(tmp_path)
    with (
        hold(tmp_path / "out"),
        pytest.raises(PackageError, match=rf"out is in use by process {os.getpid()} on .*, since"),
    ):
        export_package(Checkpoint(compact_checkpoint), Path("out"), FP32)
    assert list(tmp_path.iterdir()) == [partial]
    with hold(tmp_path / "out"), hold(tmp_path / "other"):
        pass


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from export.lock import hold\n"
        f"with hold(Path({str(tmp_path / 'out')!r})): os._exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 3
    assert (tmp_path / ".out.lock").exists()
    with hold(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_an_export_clears_what_was_calibrated_for_one_that_was_given_up(
    compact_checkpoint: Path, tmp_path: Path
) -> None:
    Journal(tmp_path / ".out.calibration", {"method": "gptq"})
    export_package(Checkpoint(compact_checkpoint), tmp_path / "out", FP32)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_journal_that_is_removed_in_part_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its facts must not be believed when weights that they belong to are gone."""
    Journal(tmp_path / "journal", {}).store("facts", {})

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clear_journal(tmp_path / "journal")
    assert Journal(tmp_path / "journal", {}).load("facts") is None


def test_a_certificate_is_made_of_nothing_that_another_left(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Neither of one that was killed, nor of one that is under way."""
    folder = tmp_path / "work"
    prompt, other = ([Prompt(random_ids(9, seed))] for seed in range(2))
    reference = CheckpointReference(checkpoint, folder)
    (expected,) = reference.logits(prompt, [8])
    under_way = reference.logits(other, [8])
    assert not np.array_equal(next(under_way), expected)
    shutil.copytree(folder, tmp_path / "left")
    with pytest.raises(PackageError, match="work is in use"):
        next(reference.logits(prompt, [8]))
    under_way.close()  # type: ignore[attr-defined]
    (tmp_path / "left").rename(folder)
    (found,) = reference.logits(prompt, [8])
    np.testing.assert_array_equal(found, expected)
    assert not folder.exists()


def test_a_package_that_was_replaced_meanwhile_gets_no_certificate(
    export_compact: Exporter, package_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(*arguments: Any) -> Any:
        shutil.rmtree(package_copy)
        shutil.copytree(export_compact("int4"), package_copy)
        return certify(*arguments)

    monkeypatch.setattr("phi_edge.evaluation.certify.certify", replace)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.txt").write_text("Hello there")
    arguments = [str(package_copy), "--reference", str(export_compact("int4"))]
    arguments += ["--samples", str(tmp_path / "samples")]
    with pytest.raises(PackageError, match="replaced while it was certified"):
        commands.certify.main(arguments, standalone_mode=False)
    assert not (package_copy / "certificate.json").exists()
