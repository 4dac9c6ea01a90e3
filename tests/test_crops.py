"""An image that nobody chose the crops of keeps its own resolution, wherever it is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from tokenizers import Tokenizer

import phi_edge
from phi_edge import ChatCompletionsClient, HttpResponseError, MemoryLimitError, package
from phi_edge.api.parse import parse_request
from phi_edge.api.service import ChatService
from phi_edge.cli import options as cli_options
from phi_edge.cli.main import cli
from phi_edge.image.crops import CROP_SIZE, auto_crops, count_tokens, layout, padded_size
from phi_edge.loading import BUNDLED_MODEL
from phi_edge.models import ImageContentItem, ImageUrl, TextContentItem, UserMessage
from phi_edge.planning.estimate import estimate
from phi_edge.planning.memory import predict_needs
from phi_edge.planning.speed import SpeedProfile, most_crops, save_profile

from .helpers.cli import run_cli
from .helpers.engines import WatchedEngine
from .helpers.models import ListeningModel
from .helpers.requests import body, image_part

MANIFEST = package.read_manifest(BUNDLED_MODEL)
QUESTION = "What is it?"
PHOTO = (1900, 1069)
Size = tuple[int, int]


def make_listener(max_ram_bytes: int | None = None) -> ListeningModel:
    """A model that is asked for prompts alone."""
    tokenizer = Tokenizer.from_file(str(BUNDLED_MODEL / package.TOKENIZER_FILE))
    return ListeningModel(MANIFEST, tokenizer, Mock(), max_ram_bytes=max_ram_bytes)


def request(
    model: ListeningModel, *parts: dict[str, Any], num_crops: int | None = None, **fields: Any
) -> phi_edge.Prompt:
    """Ask the API about images, and give the prompt that the model gets."""
    content = [*parts, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    service = ChatService(model, image_policy="all", num_crops=num_crops)
    service.stream(parse_request(body(messages=messages, **fields)))
    return model.prompts[-1]


def sub_crops(prompt: phi_edge.Prompt) -> list[int]:
    return [len(crops.pixel_values) - 1 for crops in prompt.images]


# The rule


@pytest.mark.parametrize(
    ("size", "num_crops", "num_tokens"),
    [
        ((90, 60), 1, 313),
        ((336, 336), 1, 313),
        ((337, 100), 2, 457),
        ((640, 480), 4, 757),
        ((800, 600), 9, 1489),
        ((1000, 1000), 9, 1489),
        ((1280, 720), 12, 1921),
        ((1900, 1069), 15, 2353),
        ((3000, 500), 16, 2485),
        ((4000, 3000), 12, 1921),
    ],
)
def test_the_only_image_of_a_prompt(size: Size, num_crops: int, num_tokens: int) -> None:
    most = auto_crops(*size, num_images=1)
    height, width = padded = padded_size(*size, most)
    assert height * width // CROP_SIZE**2 == num_crops
    assert count_tokens(padded) == num_tokens
    # Turned, it has the same crops, and other separators between their rows.
    assert auto_crops(*size[::-1], num_images=1) == most
    assert padded_size(*size[::-1], most) == (width, height)


@pytest.mark.parametrize(
    ("size", "num_crops"), [((336, 336), 1), ((337, 100), 2), ((640, 480), 4), (PHOTO, 4)]
)
def test_one_image_of_several(size: Size, num_crops: int) -> None:
    assert auto_crops(*size, num_images=2) == num_crops


@given(st.integers(1, 4 * CROP_SIZE), st.integers(1, 4 * CROP_SIZE))
def test_the_smallest_grid_in_which_an_image_is_not_reduced(width: int, height: int) -> None:
    short, long = sorted((width, height))
    num_crops = auto_crops(width, height, num_images=1)
    new_long, _ = layout(long, short, num_crops)
    assert new_long - CROP_SIZE < long <= new_long


@pytest.mark.parametrize(
    ("size", "most"),
    [((1000, 1), 3), ((1, 1000), 3), ((5376, 1), 16), ((5377, 1), 16), ((1, 2**31), 16)],
)
def test_a_line_of_pixels_is_refused_where_nothing_would_be_left(size: Size, most: int) -> None:
    assert auto_crops(*size, num_images=1) == most
    if max(size) <= 16 * CROP_SIZE:
        assert min(padded_size(*size, most)) == CROP_SIZE
    else:
        with pytest.raises(phi_edge.ImageError, match="too long and thin: at 16 crops"):
            padded_size(*size, most)


def test_no_pixels() -> None:
    with pytest.raises(phi_edge.ImageError, match="no pixels"):
        make_listener().stream(QUESTION, [Image.new("RGB", (0, 10))])


# The same wherever an image is given


@pytest.mark.parametrize("sizes", [[(90, 60)], [(640, 480)], [(400, 1100)], [PHOTO, (640, 480)]])
def test_all_ways_to_ask_agree(
    sizes: list[Size],
    own_engine: WatchedEngine,
    model: phi_edge.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = ListeningModel(model.manifest, model.tokenizer, own_engine)
    images = [Image.new("RGB", size) for size in sizes]
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    urls = [ImageUrl.load(image_file=path) for path in paths]
    items = [*(ImageContentItem(image_url=url) for url in urls), TextContentItem(text=QUESTION)]

    request(listener, *map(image_part, images))
    with ChatCompletionsClient(listener, image_policy="all") as client:
        client.complete(messages=[UserMessage(content=items)], max_tokens=1)
    listener.stream(QUESTION, images, max_tokens=1)
    listener.ask(QUESTION, paths, max_tokens=1)
    cut = listener.prompts[0].images[:1]
    listener.stream(QUESTION, [*cut, *paths[1:]], max_tokens=1)
    monkeypatch.setattr(cli_options, "load_model", Mock(return_value=listener))
    named = [part for path in paths for part in ("--image", str(path))]
    done = CliRunner().invoke(cli, ["chat", *named, "--max-tokens", "1", QUESTION])
    assert done.exit_code == 0, done.output

    first, *others = listener.prompts
    assert len(others) == 5
    for prompt in others:
        assert prompt.input_ids.tolist() == first.input_ids.tolist()
        assert prompt.image_sizes == first.image_sizes
    expected = [auto_crops(*size, len(sizes)) for size in sizes]
    assert first.image_sizes == [
        padded_size(*size, most) for size, most in zip(sizes, expected, strict=True)
    ]

    text = first.num_tokens - sum(map(count_tokens, first.image_sizes))
    facts = estimate(model.manifest, text, image_sizes=sizes, max_tokens=0)
    assert facts["prompt_tokens"] == first.num_tokens
    assert facts["crops"] == sum(len(crops.pixel_values) for crops in first.images)


def test_what_was_chosen_stays() -> None:
    model, photo = make_listener(), Image.new("RGB", PHOTO)
    for detail, expected in (("low", 1), ("auto", 15), ("high", 15)):
        assert sub_crops(request(model, image_part(photo, detail=detail))) == [expected]
    both = [image_part(photo, detail="high"), image_part(photo)]
    assert sub_crops(request(model, *both)) == [15, 4]
    for num_crops in (1, 4, 16):
        model.stream(QUESTION, [photo, photo], num_crops=num_crops)
        assert sub_crops(model.prompts[-1]) == [min(num_crops, 15)] * 2
    default = model.encode_prompt("<|image_1|>", [photo])
    assert sub_crops(default) == [MANIFEST.model.num_crops]
    with pytest.raises(phi_edge.ImageError, match="at least 1"):
        model.stream(QUESTION, [photo], num_crops=0)
    with pytest.raises(ValueError, match="num_crops: it is at least 1"):
        ChatService(model, num_crops=0)
    for detail, expected in (("low", 1), ("auto", 4), ("high", 15)):
        answer = request(model, image_part(photo, detail=detail), num_crops=4)
        assert sub_crops(answer) == [expected]


# Less than that


def test_time_lowers_what_an_image_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHI_EDGE_CACHE_DIR", str(tmp_path))
    profile = SpeedProfile(1.0, 0.0, 0.0, 10)
    save_profile(profile, MANIFEST, "cpu", None)
    model, photo = make_listener(), Image.new("RGB", PHOTO)
    for seconds, expected in ((100, 15), (15, 12), (0, 1)):
        model.stream(QUESTION, [photo], max_ttft_ms=1000 * seconds)
        assert sub_crops(model.prompts[-1]) == [expected]
    # Never so low that nothing of a thin image would be left.
    assert most_crops(profile, [Image.new("RGB", (3000, 1))], [16], 0, max_ttft_ms=0) == 9


def test_memory_lowers_what_nobody_chose() -> None:
    photo = Image.new("RGB", (1344, 1344))
    tokens = make_listener().encode_prompt(QUESTION).num_tokens + 40
    limits = {
        side**2: predict_needs(
            MANIFEST,
            count_tokens((side * CROP_SIZE, side * CROP_SIZE)) + tokens + 500,
            [(side * CROP_SIZE, side * CROP_SIZE)],
        ).peak_bytes
        for side in range(1, 5)
    }
    for num_crops, limit in limits.items():
        model = make_listener(max_ram_bytes=limit)
        assert sub_crops(request(model, image_part(photo), max_tokens=500)) == [num_crops]
        model.stream(QUESTION, [photo], max_tokens=500)
        assert sub_crops(model.prompts[-1]) == [num_crops]
        # With no end in sight, room is left for an answer.
        model.stream(QUESTION, [photo])
        assert sub_crops(model.prompts[-1]) == [num_crops]

    model = make_listener(max_ram_bytes=limits[9])
    with pytest.raises(HttpResponseError, match="max_ram_mb"):
        request(model, image_part(photo, detail="high"), max_tokens=500)
    with pytest.raises(MemoryLimitError):
        model.stream(QUESTION, [photo], num_crops=16, max_tokens=500)
    # What was chosen for one image is left to it.
    parts = [image_part(photo, detail="low"), image_part(photo)]
    assert sub_crops(request(model, *parts, max_tokens=1)) == [1, 4]
    model = make_listener(max_ram_bytes=limits[1] - 10**6)
    with pytest.raises(MemoryLimitError, match="2 crops"):
        model.stream(QUESTION, [photo], max_tokens=500)


# What it takes is said before


def test_estimate_reads_the_size_of_an_image(compact_fp32: Path, tmp_path: Path) -> None:
    photo = Image.new("RGB", (400, 1100))
    photo.save(tmp_path / "upright.png")
    exif = photo.getexif()
    exif[ExifTags.Base.Orientation] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)

    def run(*arguments: object) -> dict[str, Any]:
        done = run_cli("estimate", compact_fp32, "--json", "--prompt-tokens", 50, *arguments)
        assert done.returncode == 0, done.stderr
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts

    expected = count_tokens((4 * CROP_SIZE, 2 * CROP_SIZE))
    for name in ("upright.png", "turned.jpg"):
        facts = run("--image", tmp_path / name)
        assert (facts["prompt_tokens"], facts["crops"]) == (50 + expected, 9)
    low = run("--image", tmp_path / "upright.png", "--detail", "low")
    assert low["crops"] == 2


def test_commands_take_the_name_of_a_model() -> None:
    for command in (("info", "PHI-EDGE-TINY"), ("doctor", "--model", "phi-edge-tiny")):
        done = run_cli(*command, "--json")
        assert done.returncode == 0, done.stderr


def test_estimate_without_sizes_takes_the_most() -> None:
    for num_images, total_crops in ((0, 0), (1, 17), (3, 15)):
        assert estimate(MANIFEST, 50, num_images=num_images)["crops"] == total_crops
    assert estimate(MANIFEST, 50, num_images=2, detail="high")["crops"] == 34


def test_estimate_takes_images_or_a_number_of_them(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("text")
    ask = ("estimate", "--prompt-tokens", 50, "--image")
    done = run_cli(*ask, tmp_path / "a.png", "--images", 2)
    assert (done.returncode, done.stdout) == (2, "")
    assert "not both" in done.stderr
    done = run_cli(*ask, tmp_path / "b.png")
    assert done.returncode == 1
    assert "b.png is not an image" in done.stderr
