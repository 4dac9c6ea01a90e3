"""What is read from the files of others, and what is refused before any of it is run."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import phi_edge
from phi_edge import PackageError, Prompt, package
from phi_edge.package import DECODER, EMBEDDING, VISION
from phi_edge.package.published import read_published
from phi_edge.planning.estimate import estimate

from .helpers.cli import run_cli
from .helpers.packages import edit_json
from .helpers.published import (
    BOUNDARY,
    CONTEXT,
    CPU,
    FOLDER,
    GPU,
    OLD,
    UNIFIED,
    change_role,
    check_refused,
    data_file,
    edit_decoder,
    edit_graph,
    edit_model,
    graph_file,
    move_graph,
    rename_data,
)
from .helpers.sequences import greedy_tokens, random_ids

Config = dict[str, Any]


# What is read


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (CPU, ("Phi-3.5-vision-instruct", "cpu", "attention_mask", "float32", 4)),
        (GPU, ("Phi-3.5-vision-instruct", "cuda", "position_ids", "float16", 4)),
        (UNIFIED, ("Phi-3-vision-128k-instruct", "cpu", "attention_mask", "float32", 16)),
        (OLD, ("Phi-3-vision-128k-instruct", "cpu", "attention_mask", "float32", 16)),
    ],
)
def test_what_a_package_is(
    name: str, expected: tuple[str, str, str, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    found = read_published(FOLDER / name)
    model = found.model
    facts = (found.name, found.provider, found.rope_input, model.io_dtype, model.num_crops)
    assert facts == expected
    assert found.merges_features == (name != OLD)
    assert found.layout == "onnxruntime-genai" + (" of May 2024" if name == OLD else "")
    assert found.precision == "int4"
    assert model.cache_dtype == model.io_dtype
    assert (model.original_context_length, model.context_length) == (BOUNDARY, CONTEXT)
    sizes = (model.hidden_size, model.vocab_size, model.num_hidden_layers, model.head_size)
    assert sizes == (64, 512, 2, 32)


def test_graphs_for_gpus_are_for_directml_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    assert package.read_package(FOLDER / GPU).provider == "dml"
    assert package.read_package(FOLDER / CPU).provider == "cpu"


@pytest.mark.parametrize(
    ("options", "provider"),
    [([{"DML": {}}], "dml"), ([{"cuda": {"enable_cuda_graph": "0"}}], "cuda"), ([], "cpu")],
)
def test_a_provider_that_is_named(
    published_copy: Path, options: list[object], provider: str
) -> None:
    edit_decoder(published_copy, session_options={"provider_options": options})
    assert package.read_package(published_copy).provider == provider


def test_a_provider_that_is_not_known(published_copy: Path) -> None:
    """Its graphs run elsewhere as well."""
    edit_decoder(published_copy, session_options={"provider_options": [{"NvTensorRtRtx": {}}]})
    phi_edge.load_model(published_copy).close()


def test_ends_of_answers(published_copy: Path) -> None:
    """Those of the configuration and of the template, if the vocabulary has them."""
    tokenizer = json.loads((published_copy / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokenizer}
    template = {ids["<|end|>"], ids["<|endoftext|>"]}
    for configured, expected in ((2, {2}), (32007, set()), ([2, 3, 600], {2, 3})):
        edit_model(published_copy, eos_token_id=configured)
        ends = package.read_package(published_copy).model.eos_token_ids
        assert set(ends) == expected | template
        assert len(ends) == len(set(ends))


def test_without_a_processor_configuration(
    published: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(published(UNIFIED), tmp_path / "package"))
    (folder / package.PROCESSOR_CONFIG_FILE).unlink()
    with phi_edge.load_model(folder) as model:
        assert model.manifest.model.num_crops == 4
        assert package.PROCESSOR_CONFIG_FILE not in model.manifest.files


def test_old_names(published_copy: Path, published: Callable[[str], Path]) -> None:
    """A copy of Phi-3.5's weights under the names of the model before."""
    for role in (VISION, EMBEDDING, DECODER):
        path = graph_file(published_copy, role)
        target = path.with_name(path.name.replace("phi-3.5-v-instruct", "phi-3-v-128k-instruct"))
        move_graph(path, target, ".data")
        change_role(published_copy, role, filename=target.name)
    with (
        phi_edge.load_model(published_copy) as model,
        phi_edge.load_model(published(CPU)) as original,
    ):
        assert model.manifest.name == "Phi-3-vision-128k-instruct"
        prompt = Prompt(random_ids(90))
        assert greedy_tokens(model, prompt) == greedy_tokens(original, prompt)


def test_the_cache_is_counted_as_the_graph_has_it(published: Callable[[str], Path]) -> None:
    """Keys and values in float32, in two layers of two heads of 32."""
    for name, item_bytes in ((CPU, 4), (GPU, 2)):
        manifest = package.read_package(published(name))
        assert manifest.model.cache_bytes_per_token == 2 * 2 * 2 * 32 * item_bytes
        found = estimate(manifest, 100, max_tokens=20)
        assert found["cache_bytes"] == 120 * 2 * 2 * 2 * 32 * item_bytes


def test_digests_tell_copies_apart_by_size_and_time(published_copy: Path) -> None:
    """Nothing is hashed: gigabytes would take longer than the first answer."""
    path = data_file(published_copy)
    first, status = package.read_package(published_copy).digest, path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert package.read_package(published_copy).digest == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    second = package.read_package(published_copy).digest
    with path.open("ab") as file:
        file.write(b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    third = package.read_package(published_copy).digest
    assert len({first, second, third}) == 3
    assert len(bytes.fromhex(first)) == 32


@pytest.mark.parametrize("option", [[], ["--model"]])
def test_info(published: Callable[[str], Path], option: list[str]) -> None:
    done = run_cli("info", *option, published(CPU), "--json")
    facts = json.loads(done.stdout)
    assert (facts["layout"], facts["context_length"]) == ("onnxruntime-genai", CONTEXT)
    assert facts["size_bytes"] == sum(facts["files"].values())


# What is refused

DAMAGED = r"(, or a file beside it,)? is damaged \(.*\): fetch it again"


@pytest.mark.parametrize("kind", ["phi4mm", "phi3", 3])
def test_another_model(published_copy: Path, kind: object) -> None:
    edit_model(published_copy, type=kind)
    said = rf"package has a model of the type {kind!r}: phi_edge runs Phi-3\.5-vision and"
    with pytest.raises(PackageError, match=said) as caught:
        phi_edge.load_model(published_copy)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "", "[]", "3", '{"model": []}', "\ufeff{}", "[" * 10**5])
def test_a_damaged_configuration(published_copy: Path, content: str) -> None:
    (published_copy / package.GENAI_CONFIG_FILE).write_text(content, encoding="utf-8")
    check_refused(published_copy, rf"genai_config\.json{DAMAGED}")


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.pop("decoder"),
        lambda model: model.pop("type"),
        lambda model: model["vision"].pop("filename"),
        lambda model: model.update(vocab_size="512"),
        lambda model: model.update(context_length=-512),
        lambda model: model.update(context_length=512.5),
        lambda model: model.update(pad_token_id=None),
        lambda model: model.update({"eos_token_id": "2"}),
        lambda model: model.update(eos_token_id=None),
        lambda model: model["decoder"].update(head_size=True),
        lambda model: model.update(eos_token_id=2.5),
        lambda model: model.update(eos_token_id=-1),
        lambda model: model.update(context_length=0),
        lambda model: model["decoder"].update(filename=7),
        lambda model: model["decoder"].update(num_hidden_layers=10**12),
    ],
)
def test_a_configuration_with_wrong_fields(
    published_copy: Path, change: Callable[[Config], object]
) -> None:
    edit_json(published_copy / package.GENAI_CONFIG_FILE, lambda config: change(config["model"]))
    check_refused(published_copy, rf"genai_config\.json{DAMAGED}")


@pytest.mark.parametrize("name", [package.PROCESSOR_CONFIG_FILE, package.TOKENIZER_FILE])
def test_other_json_that_is_damaged(published_copy: Path, name: str) -> None:
    (published_copy / name).write_text("{")
    check_refused(published_copy, f"{re.escape(name)} is damaged")


def test_a_tokenizer_that_is_missing(published_copy: Path) -> None:
    """What needs none, such as `phi-edge info`, goes on."""
    (published_copy / package.TOKENIZER_FILE).unlink()
    assert package.TOKENIZER_FILE not in package.read_package(published_copy).files
    said = r"tokenizer\.json is missing: copy it from the model's repository"
    with pytest.raises(PackageError, match=said):
        phi_edge.load_model(published_copy)


@pytest.mark.parametrize("role", [VISION, EMBEDDING, DECODER])
def test_a_file_that_is_missing(published_copy: Path, role: str) -> None:
    for path in (data_file(published_copy, role), graph_file(published_copy, role)):
        path.unlink()
        check_refused(published_copy, f"{re.escape(path.name)} is missing: fetch it again")


def test_weights_that_end_too_early(published_copy: Path) -> None:
    size = data_file(published_copy).stat().st_size
    with data_file(published_copy).open("r+b") as file:
        file.truncate(size - 1)
    said = rf"text\.onnx\.data has {size - 1:,} bytes and should have at least {size:,}: fetch"
    check_refused(published_copy, said)


@pytest.mark.parametrize("find", [data_file, graph_file])
def test_what_git_has_in_the_place_of_a_file(
    published_copy: Path, find: Callable[[Path, str], Path]
) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 72960\n"
    find(published_copy, VISION).write_text(pointer)
    check_refused(published_copy, "only says where the file is: run `git lfs pull`")


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x3a\x05\x00", b"\x08\x07"])
def test_a_graph_that_is_none(published_copy: Path, content: bytes) -> None:
    path = graph_file(published_copy, DECODER)
    path.write_bytes(content)
    check_refused(
        published_copy, rf"{re.escape(path.name)} (is no ONNX graph|has 0 bytes).*fetch it again"
    )


def test_a_graph_that_ends_too_early(published_copy: Path) -> None:
    path = graph_file(published_copy, DECODER)
    path.write_bytes(path.read_bytes()[:-1000])
    check_refused(published_copy, "is no ONNX graph .*: fetch it again")


@pytest.mark.parametrize("location", ["../x", "a/../../x", "/etc/passwd", "..\\x", "sub/x", ""])
def test_weights_from_outside(published_copy: Path, location: str) -> None:
    """Nothing is opened: ONNX Runtime's own error would be another."""
    edit_graph(graph_file(published_copy, VISION), lambda graph: rename_data(graph, location))
    said = f"vision.onnx takes weights from outside its folder: {location!r}"
    check_refused(published_copy, re.escape(said))


@pytest.mark.parametrize(
    "name", ["../x.onnx", "/x.onnx", "a/../../x.onnx", "..\\x.onnx", "C:x.onnx", ""]
)
def test_a_graph_outside(published_copy: Path, name: str) -> None:
    edit_decoder(published_copy, filename=name)
    check_refused(published_copy, f"names a graph outside of the folder: {re.escape(repr(name))}")


def test_a_link_out_of_the_package(published_copy: Path, tmp_path: Path) -> None:
    data_file(published_copy).rename(tmp_path / "elsewhere")
    data_file(published_copy).symlink_to(tmp_path / "elsewhere")
    check_refused(published_copy, r"text\.onnx\.data is a link that leads elsewhere")
