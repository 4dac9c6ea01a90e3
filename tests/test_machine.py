"""Time is predicted from a calibration of this machine, and crops are chosen by it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

import phi_edge
from phi_edge import package
from phi_edge.api.parse import parse_request
from phi_edge.api.service import ChatService
from phi_edge.evaluation.measure import Speed, TextSpeed
from phi_edge.image.crops import hd_image, padded_size
from phi_edge.loading import BUNDLED_MODEL
from phi_edge.planning.speed import SpeedProfile, load_profile, most_crops, save_profile
from phi_edge.text.prompt import chat_text, until_images_are_known

from .helpers.cli import run_cli
from .helpers.models import ListeningModel
from .helpers.requests import body, image_part

MANIFEST = package.read_manifest(BUNDLED_MODEL)
PROFILE = SpeedProfile(
    seconds_per_crop=1.0,
    seconds_per_token=0.01,
    seconds_per_token_squared=1e-6,
    decode_tokens_per_second=10,
)
SQUARE = Image.new("RGB", (500, 500))
# 100 tokens of text, and one crop: 2 s of vision, 4.13 s of tokens and 0.17 s of attention.
ONE_CROP_MS = 1000 * PROFILE.predict_ttft(413, 2)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHI_EDGE_CACHE_DIR", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def calibrated() -> None:
    save_profile(PROFILE, MANIFEST, "cpu", None)


def test_time_to_first_token_is_vision_and_prefill() -> None:
    assert PROFILE.predict_ttft(1000) == pytest.approx(10 + 1)
    assert PROFILE.predict_ttft(2000, 5) == pytest.approx(5 + 20 + 4)
    assert pytest.approx(2000 + 4130 + 170, abs=1) == ONE_CROP_MS


def test_a_profile_is_fitted_to_two_lengths() -> None:
    def speed(*seconds: float) -> Speed:
        lengths = zip((256, 1280), seconds, strict=True)
        text = tuple(TextSpeed(count, count / time, 10.0) for count, time in lengths)
        return Speed(0.1, 1.0, text, None)

    times = [PROFILE.predict_ttft(length) for length in (256, 1280)]
    fitted = dataclasses.asdict(speed(*times).profile())
    assert fitted == pytest.approx(dataclasses.asdict(PROFILE))
    # A long prompt that is faster than a short one says nothing of attention.
    clipped = speed(2.56, 10.24).profile()
    assert clipped.seconds_per_token_squared == 0
    assert clipped.predict_ttft(1280) == pytest.approx(10.24)


@pytest.mark.parametrize(
    ("max_ttft_ms", "expected"),
    [(0, 1), (ONE_CROP_MS, 3), (1e9, 16), (1000 * PROFILE.predict_ttft(857, 5) + 1, 8)],
)
def test_the_most_crops_in_time(max_ttft_ms: float, expected: int) -> None:
    """A square image is laid out on one crop up to 3, and on 2 x 2 from 4 to 8."""
    assert most_crops(PROFILE, [SQUARE], [16], 100, max_ttft_ms) == expected


def test_each_image_keeps_its_own_limit() -> None:
    budget = 1000 * PROFILE.predict_ttft(757 + 313, 7) + 1
    assert most_crops(PROFILE, [SQUARE, SQUARE], [4, 1], 0, budget) == 4
    assert most_crops(PROFILE, [SQUARE, SQUARE], [4, 4], 0, budget) == 3


@pytest.mark.parametrize("size", [(500, 500), (90, 60), (50, 170), (1344, 1008), (1000, 10)])
@pytest.mark.parametrize("num_crops", [4, 9, 16])
def test_the_padded_size_is_known_before_the_pixels(size: tuple[int, int], num_crops: int) -> None:
    assert padded_size(*size, num_crops) == hd_image(Image.new("RGB", size), num_crops).shape[:2]


@pytest.mark.parametrize(("provider", "threads"), [("cpu", 1), ("cuda", None)])
def test_a_calibration_is_for_one_way_of_running(provider: str, threads: int | None) -> None:
    save_profile(PROFILE, MANIFEST, "cpu", None)
    assert load_profile(MANIFEST, "cpu", None) == PROFILE
    with pytest.raises(phi_edge.CalibrationError, match="run `phi-edge calibrate`"):
        load_profile(MANIFEST, provider, threads)


@pytest.mark.parametrize("content", ["", "{}", '{"seconds_per_crop": "x"}', "[1]"])
def test_a_damaged_calibration_is_named(content: str) -> None:
    path = save_profile(PROFILE, MANIFEST, "cpu", None)
    path.write_text(content)
    with pytest.raises(phi_edge.CalibrationError, match=path.name):
        load_profile(MANIFEST, "cpu", None)


def test_calibrate_measures_and_estimate_predicts(cache_folder: Path) -> None:
    ask = ("estimate", "--json", "--prompt-tokens", "50", "--images", "1", "--detail", "high")
    assert "phi-edge calibrate" in json.loads(run_cli(*ask).stdout)["note"]
    assert "seconds per crop" in run_cli("calibrate").stdout
    assert len(list(cache_folder.rglob("*.json"))) == 1
    measured = load_profile(MANIFEST, "cpu", None)
    assert measured.seconds_per_crop > 0
    assert measured.seconds_per_token > 0
    assert measured.decode_tokens_per_second > 0
    predicted = json.loads(run_cli(*ask).stdout)["time_to_first_token_seconds"]
    assert predicted == pytest.approx(measured.predict_ttft(50 + 2509, 17), abs=0.006)


@pytest.mark.usefixtures("calibrated")
def test_a_prompt_gets_the_crops_that_its_budget_allows() -> None:
    text = chat_text([("user", "<|image_1|>\nWhat is it?")])
    with phi_edge.load_model() as model:

        def num_crops(max_ttft_ms: float | None) -> int:
            prompt = model.encode_prompt(text, [SQUARE], 16, max_ttft_ms=max_ttft_ms)
            return len(prompt.images[0].pixel_values) - 1

        assert (num_crops(None), num_crops(1e9), num_crops(0)) == (16, 16, 1)
        assert num_crops(1000 * PROFILE.predict_ttft(830, 5)) == 4


@pytest.mark.usefixtures("calibrated")
def test_the_service_gives_images_fewer_crops(model: phi_edge.Model) -> None:
    parts = [image_part(SQUARE, detail="high"), {"type": "text", "text": "What is it?"}]
    first = {"role": "user", "content": parts}
    more = [{"role": "assistant", "content": "A sea."}, {"role": "user", "content": "Why? " * 300}]
    budget = 1000 * PROFILE.predict_ttft(830, 5)
    listener = ListeningModel(MANIFEST, model.tokenizer, Mock())
    service = ChatService(listener, max_ttft_ms=budget)
    for messages in ([first], [first, *more]):  # the later turn has the same crops
        service.stream(parse_request(body(messages=messages)))
        (crops,) = listener.prompts[-1].images
        assert len(crops.pixel_values) == 5


def test_a_budget_wants_a_calibration() -> None:
    with phi_edge.load_model() as model:
        with pytest.raises(phi_edge.CalibrationError):
            ChatService(model, max_ttft_ms=1000)
        with pytest.raises(phi_edge.CalibrationError):
            model.encode_prompt("<|image_1|>", [SQUARE], max_ttft_ms=1000)


def test_later_turns_are_no_part_of_what_images_wait_for() -> None:
    start = "<|user|>\n<|image_1|>\nWhat?<|end|>\n"
    assert until_images_are_known(f"{start}<|assistant|>\nA.<|end|>\n<|user|>\nB") == start
    earlier = "<|user|>\nHi<|end|>\n<|assistant|>\nHo<|end|>\n"
    assert until_images_are_known(f"{earlier}{start}<|assistant|>\n") == earlier + start
    assert until_images_are_known("What?") == "What?"


@pytest.mark.skipif(sys.platform == "win32", reason="the environment moves no folder there")
def test_calibrations_are_in_the_users_cache_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platformdirs = pytest.importorskip("platformdirs")
    monkeypatch.delenv("PHI_EDGE_CACHE_DIR")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = platformdirs.user_cache_path("phi_edge", appauthor=False)
    assert folder.is_relative_to(tmp_path)
    assert save_profile(PROFILE, MANIFEST, "cpu", None).is_relative_to(folder)
