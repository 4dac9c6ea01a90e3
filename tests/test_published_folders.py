"""Where packages of others are found: in the Hugging Face hub's cache, and in repositories."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import phi_edge
from phi_edge import ChatCompletionsClient, PackageError, PackageNotFoundError, Prompt, package
from phi_edge.loading import find_package
from phi_edge.package import DECODER, describe_file

from .helpers.cli import run_cli
from .helpers.published import (
    CPU,
    GPU,
    UNIFIED,
    data_file,
    edit_graph,
    graph_file,
    multiply_in_floats,
    to_hub_cache,
)
from .helpers.sequences import greedy_tokens, random_ids

PROMPT = Prompt(random_ids(40))
SUBFOLDER = "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"


@pytest.fixture
def hub(published_copy: Path, tmp_path: Path) -> Path:
    """A model's folder in the hub's cache."""
    return to_hub_cache(published_copy, tmp_path / "hub", SUBFOLDER)


def package_in(hub: Path) -> Path:
    (snapshot,) = (hub / "snapshots").iterdir()
    return snapshot / SUBFOLDER


# The hub's cache


def test_the_hub_s_cache(hub: Path, published: Callable[[str], Path]) -> None:
    """Whichever of its folders is named."""
    with phi_edge.load_model(published(CPU)) as model:
        expected = greedy_tokens(model, PROMPT)
    inner = package_in(hub)
    assert data_file(inner).is_symlink()
    for folder in (inner, inner.parents[1], hub):
        assert find_package(folder) == inner
        with phi_edge.load_model(folder, verify=True) as model:
            assert greedy_tokens(model, PROMPT) == expected


def test_names_in_the_cache_tell_digests(hub: Path) -> None:
    """Those of the graphs and weights; the hub has others of small files."""
    done = run_cli("verify", hub)
    said = "6 of 9 files are as they were published; no digests are known of the others"
    assert (done.returncode, done.stdout) == (0, f"{package_in(hub)}: {said}\n")


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_byte_that_was_changed_in_the_cache(hub: Path) -> None:
    change_a_byte(data_file(package_in(hub)).resolve())
    done = run_cli("verify", hub)
    assert done.returncode != 0
    said = "phi-3.5-v-instruct-text.onnx.data was changed (its SHA-256 differs). Fetch it again"
    assert said in done.stderr
    with pytest.raises(PackageError, match=r"text\.onnx\.data was changed"):
        phi_edge.load_model(hub, verify=True)


def test_a_blob_that_is_missing(hub: Path) -> None:
    data_file(package_in(hub)).resolve().unlink()
    with pytest.raises(PackageError, match=r"text\.onnx\.data is missing: fetch it again"):
        phi_edge.load_model(hub)


def test_the_current_revision_is_taken(
    hub: Path, published: Callable[[str], Path], tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(published(CPU), tmp_path / "older"))
    to_hub_cache(copied, tmp_path / "hub", SUBFOLDER, "b" * 40)
    (hub / "refs").mkdir()
    for revision in ("a" * 40, "b" * 40):
        (hub / "refs/main").write_text(revision)
        assert find_package(hub) == hub / "snapshots" / revision / SUBFOLDER


# What a download keeps of digests


def write_record(root: Path, path: Path, content: bytes | None = None) -> Path:
    """Write down a file as the hub's tools do, when they fetch a repository to a folder."""
    record = root / ".cache/huggingface/download" / f"{path.relative_to(root)}.metadata"
    record.parent.mkdir(parents=True, exist_ok=True)
    lines = f"{'a' * 40}\n{describe_file(path).sha256}\n1730000000.5\n".encode()
    record.write_bytes(lines if content is None else content)
    return record


@pytest.mark.parametrize("subfolder", ["", "gpu/gpu-int4-rtn-block-32"])
def test_records_of_a_download_tell_digests(
    published_copy: Path, tmp_path: Path, subfolder: str
) -> None:
    root = tmp_path / "download"
    folder = Path(shutil.copytree(published_copy, root / subfolder))
    weights, config = data_file(folder), folder / package.GENAI_CONFIG_FILE
    for path in (weights, graph_file(folder, "vision")):
        write_record(root, path)
    write_record(root, config, f"{'a' * 40}\n{'b' * 40}\n1.5\n".encode())
    assert find_package(root) == folder
    found = package.read_package(folder)
    assert package.check_package(folder, found, verify=True) == 2
    assert found.files[config.name].sha256 == ""
    change_a_byte(weights)
    with pytest.raises(PackageError, match=f"{weights.name} was changed"):
        package.check_package(folder, package.read_package(folder), verify=True)


@pytest.mark.parametrize("content", [b"", b"a\n", b"a\nW/b\n1\n", b"\xff\xfe\n\xff\n", b"\n\n\n"])
def test_records_that_tell_nothing(published_copy: Path, content: bytes) -> None:
    write_record(published_copy, data_file(published_copy), content)
    found = package.read_package(published_copy)
    assert package.check_package(published_copy, found, verify=True) == 0


def test_no_digests(published_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said, wherever somebody asks for verification."""
    done = run_cli("verify", published_copy)
    assert done.stdout == f"{published_copy}: no digests come with this package\n"
    assert done.returncode == 0
    phi_edge.load_model(published_copy, verify=True).close()
    assert "comes with no digests: nothing could be verified" in caplog.text
    caplog.clear()
    phi_edge.load_model(published_copy).close()
    assert caplog.text == ""


# Repositories with several packages


def repository(root: Path, published: Callable[[str], Path], **names: str) -> Path:
    """A folder with packages in subfolders, of the given names with `__` for a slash."""
    for place, name in names.items():
        shutil.copytree(published(name), root / place.replace("__", "/"))
    return root


@pytest.fixture
def microsofts(published: Callable[[str], Path], tmp_path: Path) -> Path:
    return repository(tmp_path / "repository", published, cpu_and_mobile__x=CPU, gpu__y=GPU)


def test_the_package_for_the_provider_is_taken(
    microsofts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "phi_edge.loading")
    monkeypatch.setattr("phi_edge.loading.why_not", lambda _: "there is none")
    for provider in ("auto", "cpu"):
        caplog.clear()
        assert find_package(microsofts, provider) == microsofts / "cpu_and_mobile/x"
        said = f"{microsofts} has cpu_and_mobile/x, gpu/y: taking cpu_and_mobile/x"
        assert caplog.messages == [said]
    assert find_package(microsofts, "cuda") == microsofts / "gpu/y"
    assert find_package(microsofts / "gpu") == microsofts / "gpu/y"
    monkeypatch.setattr("phi_edge.loading.why_not", lambda _: "")
    assert find_package(microsofts) == microsofts / "gpu/y"


def test_a_repository_runs(microsofts: Path, published: Callable[[str], Path]) -> None:
    with (
        phi_edge.load_model(microsofts, provider="cpu") as model,
        phi_edge.load_model(published(CPU)) as expected,
    ):
        assert greedy_tokens(model, PROMPT) == greedy_tokens(expected, PROMPT)
    with ChatCompletionsClient(microsofts, provider="cpu") as client:
        assert client.service.model.manifest.model.io_dtype == "float32"


def test_the_smallest_of_several_is_taken(published: Callable[[str], Path], tmp_path: Path) -> None:
    root = repository(tmp_path / "all", published, a=CPU, b=CPU, c=CPU, d=GPU)
    for name in ("a", "c"):
        with data_file(root / name).open("ab") as file:
            file.write(b"\0")
    assert find_package(root, "cpu") == root / "b"


def test_what_is_damaged_is_left_out(microsofts: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half a repository is enough, as Git has it that fetches large files only when asked to."""
    pointer = "version https://git-lfs.github.com/spec/v1\n"
    data_file(microsofts / "gpu/y").write_text(pointer)
    for provider in ("auto", "cpu"):
        assert find_package(microsofts, provider) == microsofts / "cpu_and_mobile/x"
    assert "left out: " in caplog.text
    data_file(microsofts / "cpu_and_mobile/x").write_text(pointer)
    with pytest.raises(PackageError, match="run `git lfs pull`"):
        find_package(microsofts)


def test_no_package_for_the_provider(published: Callable[[str], Path], tmp_path: Path) -> None:
    root = repository(tmp_path / "all", published, a__x=CPU, b=CPU)
    with pytest.raises(PackageError, match="has no package for cuda: name one of b, a/x"):
        phi_edge.load_model(root, provider="cuda")


def test_the_cpu_runs_what_is_for_others(published: Callable[[str], Path], tmp_path: Path) -> None:
    root = repository(tmp_path / "all", published, a=GPU, b=GPU)
    for provider in ("auto", "cpu"):
        assert find_package(root, provider) in (root / "a", root / "b")


def test_one_that_multiplies_in_8_bits_goes_first(
    published: Callable[[str], Path], tmp_path: Path
) -> None:
    """Though it is larger."""
    root = repository(tmp_path / "all", published, a=CPU, b=CPU)
    edit_graph(graph_file(root / "a", DECODER), multiply_in_floats)
    with data_file(root / "b").open("ab") as file:
        file.write(b"\0" * 10**6)
    assert find_package(root) == root / "b"


def test_links_in_circles_are_passed_once(microsofts: Path) -> None:
    for number in range(3):
        (microsofts / f"link{number}").symlink_to(microsofts, target_is_directory=True)
    assert len(package.find_packages(microsofts)) == 2


def test_the_default_s_name_is_found_in_its_subfolder(
    microsofts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHI_EDGE_MODEL", str(microsofts))
    assert find_package("phi-3.5-vision-instruct") == microsofts / "cpu_and_mobile/x"


def test_several_models_for_the_provider(published: Callable[[str], Path], tmp_path: Path) -> None:
    root = repository(tmp_path / "all", published, new=CPU, old__x=UNIFIED, gpu=GPU)
    with pytest.raises(PackageError, match=r"has several models: name one of .*new, old/x"):
        phi_edge.load_model(root, provider="cpu")
    assert find_package(root, "cuda") == root / "gpu"


def test_no_package_at_all(published: Callable[[str], Path], tmp_path: Path) -> None:
    """Nor is one found so deep that it must be of something else."""
    shutil.copytree(published(CPU), tmp_path / "root/a/b/c/d/e")
    with pytest.raises(
        PackageNotFoundError, match=r"nor the genai_config\.json of a published one"
    ):
        phi_edge.load_model(tmp_path / "root")
