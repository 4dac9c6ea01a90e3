"""The speed benchmarks: that they measure what they say. How fast anything is, is not tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import phi_edge
from benchmarks import published_package
from benchmarks.speed.cases import CASES, Bench
from benchmarks.speed.compare_commits import find_regressions
from benchmarks.speed.report import Row, collect_rows, format_markdown, write_into
from benchmarks.speed.sides import Side, Spec, UnknownTaskError, read_sides
from benchmarks.speed.workers.protocol import count_image_tokens
from benchmarks.synthetic_checkpoint import FULL_SIZE
from benchmarks.synthetic_package import builder_recipe, write_package
from phi_edge.cli import cli
from phi_edge.image.crops import CROP_SIZE, count_tokens
from phi_edge.loading import BUNDLED_MODEL
from phi_edge.package import PublishedPackage, read_package
from quantize import Recipe, make_recipe

from .conftest import GOLDEN


@pytest.fixture(scope="module")
def ours() -> Iterator[Side]:
    side = Side("ours", Spec("ours", str(BUNDLED_MODEL)))
    yield side
    side.close()


@pytest.fixture(scope="module")
def machine() -> Iterator[Side]:
    side = Side("machine", Spec("machine"))
    yield side
    side.close()


@pytest.mark.parametrize(
    "recipe", [make_recipe("int4", "cpu", prefill_dtype="int8"), builder_recipe()]
)
def test_a_package_of_random_weights_runs(recipe: Recipe, tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "checkpoint" / "config.json").read_text())
    written = write_package(tmp_path / "package", recipe, config)
    with phi_edge.load_model(tmp_path / "package") as model:
        assert model.manifest == written
        logits = model.start(phi_edge.Prompt(np.arange(20))).logits
    assert np.isfinite(logits).all()
    assert logits.std() > 0


@pytest.mark.parametrize(
    ("case", "figures"),
    [
        ("prefill_512", {"tokens_per_s"}),
        ("decode_512", {"tokens_per_s", "bandwidth_used_per_s"}),
        ("vision", {"s_per_crop"}),
        ("photo", {"first_token_s", "peak_rss_bytes"}),
        ("photo_auto", {"first_token_s", "peak_rss_bytes"}),
        ("second_question", {"first_s", "second_s", "second_over_first"}),
        ("reopened", {"first_s", "second_s", "second_over_first"}),
        ("reading", {"tokens_per_s", "drafted_per_s", "drafted_over_plain"}),
        ("extraction", {"tokens_per_s", "drafted_per_s", "drafted_over_plain"}),
        ("choices", {"tokens_per_s", "together_per_s", "together_over_one"}),
        ("decode_sampled", {"tokens_per_s"}),
    ],
)
def test_a_case_records_every_round(
    ours: Side, machine: Side, case: str, figures: set[str]
) -> None:
    bench = Bench([ours], machine, num_rounds=2)
    CASES[case](bench)
    records = [record for record in bench.records if record["side"] == "ours"]
    assert [record["round"] for record in records] == [0, 1]
    for record in records:
        assert record["figures"].keys() == figures
        assert all(value > 0 for value in record["figures"].values())


def test_a_side_tells_what_it_cannot_do(ours: Side) -> None:
    with pytest.raises(UnknownTaskError, match="fly"):
        ours.ask("fly")
    with pytest.raises(RuntimeError, match="ContextLengthError"):
        ours.ask("prefill", num_tokens=10**6)
    assert ours.ask("prefill", num_tokens=8)  # and goes on


def test_the_kind_of_a_side_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "sides.json"
    file.write_text('{"mine": {"kind": "magic"}}')
    with pytest.raises(ValueError, match="magic"):
        read_sides(file)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 4), (3, 5)])
def test_workers_count_image_tokens_as_the_runtime_does(rows: int, columns: int) -> None:
    expected = count_tokens((rows * CROP_SIZE, columns * CROP_SIZE))
    assert count_image_tokens(rows, columns) == expected


def records(**rates: list[float]) -> list[dict[str, Any]]:
    return [
        {"side": side, "round": number, "figures": {"tokens_per_s": value}}
        for side, values in rates.items()
        for number, value in enumerate(values)
    ]


def test_ratios_are_taken_round_by_round() -> None:
    """And then their median: a slow round slows both sides."""
    run = records(ours=[10.0, 2.0, 12.0], other=[5.0, 1.0, 4.0])
    rows = collect_rows({"decode_512": [run, records(ours=[8.0], other=[4.0])]})
    ours, other = rows
    assert (ours.side, ours.ratios) == ("ours", [])
    assert other.ratios == [2.0, 2.0, 3.0, 2.0]
    assert "| decode_512 | tokens/s | other | 4 | 1 - 5 | 2.00 | 4 |" in format_markdown(rows)


def test_a_document_keeps_what_is_around_the_results(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("Before.\n<!-- results -->\nold\n<!-- end -->\nAfter.\n")
    write_into(document, "new\n")
    assert document.read_text() == "Before.\n<!-- results -->\nnew\n<!-- end -->\nAfter.\n"
    document.write_text("Nothing.\n")
    with pytest.raises(ValueError, match="results"):
        write_into(document, "new\n")


@pytest.mark.parametrize(
    ("figure", "ratio", "is_slower"),
    [
        ("tokens_per_s", 1.05, False),
        ("tokens_per_s", 1.25, True),
        ("s_per_crop", 0.8, True),
        ("load_s", 0.8, True),
        ("load_s", 1.25, False),
    ],
)
def test_regressions_know_which_way_is_better(figure: str, ratio: float, is_slower: bool) -> None:  # noqa: FBT001
    row = Row("case", figure, "head", [1.0], [ratio])
    assert bool(find_regressions([row], limit=0.9)) == is_slower


def test_bench_command() -> None:
    command = ["bench", "--prompt-length", "20", "--prompt-length", "40", "--repetitions", "1"]
    done = CliRunner().invoke(cli, [*command, "--json"])
    speed = json.loads(done.output)
    assert [text["num_prompt_tokens"] for text in speed["text"]] == [20, 40]
    assert all(text["decode_tokens_per_second"] > 0 for text in speed["text"])
    assert speed["seconds_per_crop"] > 0
    table = CliRunner().invoke(cli, command).output
    assert "40 tokens" in table
    assert "GB" in table


def test_a_package_like_a_published_one(tmp_path: Path) -> None:
    """With more layers than its template, and sizes that are neither the template's nor real."""
    tower = {
        **json.loads((GOLDEN / "checkpoint" / "config.json").read_text())["img_processor"],
        "image_dim_out": 64,
    }
    tower["vision_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
    }
    config = FULL_SIZE | {
        "hidden_size": 288,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "vocab_size": 544,
        "max_position_embeddings": 6000,
        "img_processor": tower,
    }
    published_package.write_package(tmp_path, config, all_crops=True)
    described = read_package(tmp_path)
    assert isinstance(described, PublishedPackage)
    assert (described.model.context_length, described.model.original_context_length) == (6000, 4096)
    assert (described.model.num_hidden_layers, described.min_crops) == (4, 17)
    with phi_edge.load_model(tmp_path) as model:
        crops = model.preprocess(Image.effect_noise((300, 300), 50).convert("RGB"), 1)
        features = model.encode_image(crops)
        assert features.shape == (crops.num_tokens, 288)
        run = model.start(phi_edge.Prompt(np.r_[5, np.full(crops.num_tokens, -1), 7], (crops,)))
        assert np.isfinite(run.logits).all()
        assert run.logits.std() > 0.1
