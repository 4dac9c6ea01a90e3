"""Check what becomes of exports, downloads and cache files whose process is killed.

    python -m benchmarks.endurance.kill_points CHECKPOINT WORKDIR [--points N] [--twice] [--json]

A trial runs a job in a process that kills itself (SIGKILL) before its k-th change of the file
system or the k-th tensor, and looks at what is there. With `--twice`, the next run is killed too.
The last run goes through, and has to give the same as one that was never disturbed. N values of k
are tried with each job, or all. `CHECKPOINT` should be tiny, as `benchmarks/quality/checkpoint` is.
Needs `fork`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.tables import format_header, format_row
from export import Checkpoint, encode_samples, export_package, find_checkpoint
from phi_edge import package
from phi_edge.cache.file import TEMPORARY_PREFIX, CacheFile, write_cache_file
from phi_edge.errors import CheckpointError, PackageError
from phi_edge.evaluation.samples import Sample
from quantize import Method, make_recipe

from .fake_hub import MODEL, fake_hub

SAMPLES = (Sample("Hello there", "Good morning."),)
_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR
# The next run is killed while it clears up, or later.
_SECOND_KILLS = (1, 2, 3, 5, 8, 13, 21, 34, 55)

_HUB = "huggingface_hub.constants"

Step = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is killed.

    Attributes:
        prepare: Makes what is there before; None for nothing.
        run: The job, which may call what it is given where it could be killed besides.
        look: What is at the target: "absent", or a digest; raises where it is neither.
    """

    name: str
    prepare: Callable[[Path], object] | None
    run: Callable[[Path, Step], object]
    look: Callable[[Path], str]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came of a trial.

    Attributes:
        points: Changes before which the first run and perhaps the second were killed.
        states: What was there after each kill: "absent", "old" or "new".
        problem: What was wrong afterwards; None if nothing was.
    """

    job: str
    points: list[int]
    states: list[str]
    problem: str | None


def export(checkpoint: Path, method: Method, target: Path, step: Step) -> None:
    """Export to a target, whatever is there."""
    source = Checkpoint(checkpoint)
    recipe = make_recipe("int4", "cpu", method=method)
    samples = encode_samples(source, SAMPLES) if recipe.is_calibrated else []
    export_package(
        source, target, recipe, overwrite=True, samples=samples, progress=lambda _: step()
    )


def look_at_package(target: Path) -> str:
    """Check all files of a package, and give its digest."""
    if not target.exists():
        return "absent"
    manifest = package.read_manifest(target)
    package.check_files(target, manifest, verify=True)
    if surplus := {path.name for path in target.iterdir()} - {*manifest.files, "phi_edge.json"}:
        raise PackageError(f"{target} has {', '.join(sorted(surplus))} too")
    return manifest.digest


def download(target: Path, _: Step) -> None:
    """Download the fake hub's model into the cache of `huggingface_hub` at the target."""
    with patch.multiple(_HUB, HF_HUB_CACHE=str(target), HF_HUB_OFFLINE=False):
        find_checkpoint(MODEL)


def look_at_download(target: Path) -> str:
    """Give the digest of a checkpoint in a cache, if one is found there without the network."""
    with patch.multiple(_HUB, HF_HUB_CACHE=str(target), HF_HUB_OFFLINE=True):
        try:
            files = Checkpoint(find_checkpoint(MODEL)).files
        except CheckpointError:
            return "absent"
    return str([package.describe_file(path) for path in files])


def write_cache(value: int, target: Path, step: Step) -> None:
    """Write a file of the disk cache, array by array."""

    def arrays() -> Iterator[Any]:
        for _ in range(4):
            step()
            yield np.full(50_000, value)

    write_cache_file(target, {"value": value}, arrays())


def look_at_cache(target: Path) -> str:
    """Check a file of the disk cache, and tell what is in it."""
    if not target.exists():
        return "absent"
    with CacheFile(target) as file:
        values = {int(value) for array in file.arrays() for value in np.unique(array)}
        file.check()
    return f"{file.facts} {values}"


def make_jobs(checkpoint: Path, old: Path) -> list[Job]:
    """Make the jobs, on a checkpoint and an older package of it."""
    nearest, gptq = partial(export, checkpoint, "nearest"), partial(export, checkpoint, "gptq")
    copy = partial(shutil.copytree, old)
    return [
        Job("export", None, nearest, look_at_package),
        Job("export that replaces a package", copy, nearest, look_at_package),
        Job("calibrated export", None, gptq, look_at_package),
        Job("download from a hub", None, download, look_at_download),
        Job(
            "file of the disk cache",
            lambda target: write_cache(1, target, lambda: None),
            partial(write_cache, 2),
            look_at_cache,
        ),
    ]


def run_in_child(run: Callable[[Path, Step], object], target: Path, kill_at: int = 0) -> int:
    """Run a job in a process of its own.

    Args:
        run: The job.
        target: Its target.
        kill_at: Before which change it is killed; never if 0.

    Returns:
        How many changes it made, or 0 if it was killed.

    Raises:
        RuntimeError: It failed, and has said why.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _be_child(run, target, kill_at, writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return 0
    if status:
        raise RuntimeError(f"the undisturbed run failed with status {status}: {said}")
    return int(said)


def _be_child(run: Callable[[Path, Step], object], target: Path, kill_at: int, writer: int) -> None:
    num_changes = 0

    def step() -> None:
        nonlocal num_changes
        num_changes += 1
        if num_changes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        is_change = event in _CHANGES or (event == "open" and bool(arguments[2] & _WRITES))
        if is_change and isinstance(arguments[0], str | os.PathLike):
            path = Path(arguments[0])  # or a name in a folder that `rmtree` has opened
            if not path.is_absolute() or path.is_relative_to(target.parent):
                step()

    status = 1
    try:
        sys.addaudithook(watch)
        run(target, step)
        os.write(writer, str(num_changes).encode())
        status = 0
    except BaseException:  # noqa: BLE001 - a process that must not go on with its parent's work
        os.write(writer, traceback.format_exc().encode())
    finally:
        os._exit(status)


def try_job(job: Job, workdir: Path, num_points: int | None, *, twice: bool) -> Iterator[Trial]:
    """Kill a job at many points.

    Args:
        job: The job.
        workdir: A folder for it.
        num_points: At how many points, evenly spread; at all of them when None.
        twice: Kill the next run too.
    """
    whole = workdir / "whole" / "target"
    whole.parent.mkdir(parents=True)
    if job.prepare:
        job.prepare(whole)
    before = job.look(whole)
    num_changes = run_in_child(job.run, whole)
    states = {before: "old", job.look(whole): "new", "absent": "absent"}
    points = np.linspace(1, num_changes, min(num_points or num_changes, num_changes), dtype=int)
    for first, second in zip(points.tolist(), itertools.cycle(_SECOND_KILLS), strict=False):
        folder = workdir / "trial"
        folder.mkdir()
        yield _try_kills(job, folder, [first, second] if twice else [first], states)
        shutil.rmtree(folder)


def _try_kills(job: Job, folder: Path, kills: list[int], states: dict[str, str]) -> Trial:
    target, found = folder / "target", []
    if job.prepare:
        job.prepare(target)
    try:
        for point in kills:
            run_in_child(job.run, target, point)
            found.append(states[job.look(target)])
        run_in_child(job.run, target)
        problem = _what_is_wrong(job, folder, states)
    except (RuntimeError, ValueError, KeyError) as error:
        problem = f"{type(error).__name__}: {error}"
    return Trial(job.name, kills, found, problem)


def _what_is_wrong(job: Job, folder: Path, states: dict[str, str]) -> str | None:
    """Find what an undisturbed run should not have left."""
    if states.get(job.look(folder / "target")) != "new":
        return "the result differs from that of a run that was never disturbed"
    # Those of the disk cache go when they are an hour old.
    names = {path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY_PREFIX)}
    return None if names == {"target"} else f"there is {', '.join(sorted(names))}"


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--points", type=int, help="points of each job; all when not given")
    parser.add_argument("--twice", action="store_true", help="kill the run after that too")
    parser.add_argument("--json", action="store_true", help="print each trial as JSON")
    arguments = parser.parse_args()
    with fake_hub(arguments.checkpoint) as address:
        # Read when huggingface_hub is imported.
        os.environ.update(HF_ENDPOINT=address, HF_HUB_DISABLE_PROGRESS_BARS="1")
        try_jobs(arguments)


def try_jobs(arguments: argparse.Namespace) -> None:
    """Try all jobs, and print what came of them."""
    old = arguments.workdir.resolve() / "old"
    run_in_child(partial(export, arguments.checkpoint, "search"), old)
    if not arguments.json:
        print(format_header("job", "trials", "kills", "left absent", "old", "new", "problems"))
    for number, job in enumerate(make_jobs(arguments.checkpoint, old)):
        folder = arguments.workdir.resolve() / str(number)
        trials = []
        for trial in try_job(job, folder, arguments.points, twice=arguments.twice):
            trials.append(trial)
            if arguments.json:
                print(json.dumps(dataclasses.asdict(trial)), flush=True)
        if not arguments.json:
            print(_format_row(job.name, trials), flush=True)


def _format_row(name: str, trials: list[Trial]) -> str:
    states = Counter(state for trial in trials for state in trial.states)
    problems = [f"{trial.points}: {trial.problem}" for trial in trials if trial.problem]
    found = (states["absent"], states["old"], states["new"])
    return format_row(name, len(trials), sum(found), *found, "; ".join(problems) or 0)


if __name__ == "__main__":
    main()
