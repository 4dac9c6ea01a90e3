"""What a request takes is known before it, and what would take too much is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from PIL import Image
from tokenizers import Tokenizer

import phi_edge
from phi_edge import package
from phi_edge.api.parse import parse_request
from phi_edge.api.service import ChatService
from phi_edge.engine.ort import OrtEngine
from phi_edge.loading import BUNDLED_MODEL
from phi_edge.planning.memory import check_needs, most_tokens, predict_needs
from phi_edge.text.prompt import chat_text

MANIFEST = package.read_manifest(BUNDLED_MODEL)
# Room for 2,000 tokens of text.
LIMIT_MB = -(-predict_needs(MANIFEST, 2000).peak_bytes // 10**6)
# Padded sizes of 4 and 16 sub crops.
SMALL, LARGE = (672, 672), (1344, 1344)
MEASURE = r"""
import re, sys, phi_edge
from pathlib import Path
from PIL import Image
with phi_edge.load_model() as model:
    image = Image.new("RGB", (672, 672))
    prompt = model.encode_prompt("<|image_1|>" + "a " * int(sys.argv[1]), [image], num_crops=4)
    model.start(prompt)
# Not ru_maxrss, which begins with that of the process that started this one.
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
print(prompt.num_tokens, int(peak[1]) * 1024)
"""


@pytest.fixture
def engine() -> Mock:
    """An engine that remembers what it was asked to do."""
    return Mock(wraps=OrtEngine(BUNDLED_MODEL, MANIFEST, "cpu"))


@pytest.fixture
def tight(engine: Mock) -> Iterator[phi_edge.Model]:
    """A model with room for 2,000 tokens of text."""
    tokenizer = Tokenizer.from_file(str(BUNDLED_MODEL / package.TOKENIZER_FILE))
    limit = LIMIT_MB * 10**6
    with phi_edge.Model(MANIFEST, tokenizer, engine, max_ram_bytes=limit) as model:
        yield model


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_the_prediction_is_near_what_a_process_takes() -> None:
    command = [sys.executable, "-c", MEASURE, "2000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    num_tokens, measured = map(int, done.stdout.split())
    predicted = predict_needs(MANIFEST, num_tokens, [(672, 672)]).peak_bytes
    assert predicted == pytest.approx(measured, rel=0.2)


def test_each_part_of_a_request_adds_its_own() -> None:
    text = predict_needs(MANIFEST, 1000)
    longer = predict_needs(MANIFEST, 3000)
    assert longer.cache_bytes == 3000 * MANIFEST.model.cache_bytes_per_token
    assert longer.peak_bytes - text.peak_bytes == longer.token_bytes - text.token_bytes
    assert text.token_bytes == text.cache_bytes, "the cache is in floating point"
    model = dataclasses.replace(MANIFEST.model, cache_dtype="int8")
    over_int8 = predict_needs(dataclasses.replace(MANIFEST, model=model), 1000)
    assert over_int8.token_bytes > over_int8.cache_bytes > 0
    one = predict_needs(MANIFEST, 1000, [SMALL])
    two = predict_needs(MANIFEST, 1000, [LARGE, SMALL])
    assert (one.total_crops, two.total_crops) == (5, 22)
    assert text.image_bytes == 0 < one.image_bytes < two.image_bytes


@pytest.mark.parametrize("sizes", [[], [SMALL]])
def test_the_most_tokens_are_those_that_just_fit(sizes: list[tuple[int, int]]) -> None:
    limit = 200_000_000
    most = most_tokens(MANIFEST, limit, sizes)
    check_needs(predict_needs(MANIFEST, most, sizes), limit)
    with pytest.raises(
        phi_edge.MemoryLimitError, match=r"about 200 MB .* allows 200 MB: use fewer"
    ):
        check_needs(predict_needs(MANIFEST, most + 1, sizes), limit)
    assert most_tokens(MANIFEST, 1) == 0


def test_a_package_that_does_not_fit_is_not_loaded() -> None:
    with pytest.raises(MemoryError, match="max_ram_mb allows 50 MB"):
        phi_edge.load_model(max_ram_mb=50)


def test_a_request_that_does_not_fit_is_refused_before_any_work(
    tight: phi_edge.Model, engine: Mock
) -> None:
    fits = tight.encode_prompt("sea " * 100)
    for prompt, max_tokens in (
        (tight.encode_prompt("sea " * 3000), None),
        (fits, 2500),
        (tight.encode_prompt("<|image_1|>", [Image.new("RGB", (9, 9))], num_crops=16), None),
    ):
        with pytest.raises(phi_edge.MemoryLimitError):
            tight.generate(prompt, max_tokens=max_tokens)
        with pytest.raises(phi_edge.MemoryLimitError):
            tight.start(prompt, max_tokens=max_tokens)
    assert engine.mock_calls == []
    assert next(tight.generate(fits, max_tokens=1)).finish_reason == "length"


def test_without_max_tokens_a_completion_ends_where_memory_does(tight: phi_edge.Model) -> None:
    prompt = tight.encode_prompt("sea")
    most = most_tokens(MANIFEST, LIMIT_MB * 10**6)
    assert 2000 <= most < 2200
    # The last token is chosen, and never cached.
    end = MANIFEST.model.eos_token_ids[0]
    usage = tight.generate(prompt, logit_bias={end: -1000.0}).answer().usage
    assert usage.total_tokens == most + 1


def test_what_is_kept_makes_room_for_a_request(tight: phi_edge.Model, engine: Mock) -> None:
    image = tight.preprocess(Image.new("RGB", (9, 9)))
    tight.encode_image(image)
    prompts = [tight.encode_prompt(word * 300) for word in ("sea ", "land ")]
    for prompt in prompts:
        assert list(tight.generate(prompt, max_tokens=1))
    assert engine.begin.call_count == 2
    # It needs the memory of the other run, and neither that of its own nor of the image.
    with tight.start(prompts[0], max_tokens=1000) as run:
        assert run.num_tokens == prompts[0].num_tokens
    assert engine.begin.call_count == 2
    tight.encode_image(image)
    assert engine.encode_image.call_count == 1
    tight.start(prompts[1])
    assert engine.begin.call_count == 3
    # All the memory there is: the image is forgotten, too.
    most = most_tokens(MANIFEST, LIMIT_MB * 10**6)
    tight.start(prompts[1], max_tokens=most - prompts[1].num_tokens)
    tight.encode_image(image)
    assert engine.encode_image.call_count == 2


def test_the_api_names_the_limit(tight: phi_edge.Model) -> None:
    request = {"messages": [{"role": "user", "content": "sea " * 3000}]}
    with pytest.raises(phi_edge.HttpResponseError, match="max_ram_mb") as caught:
        ChatService(tight).complete(parse_request(request))
    assert (caught.value.status_code, caught.value.code) == (400, "memory_limit_exceeded")


def test_a_run_survives_a_request_that_fails_before_it_is_used(
    tight: phi_edge.Model, engine: Mock
) -> None:
    text = chat_text([("user", "What is the sea?")])
    list(tight.generate(tight.encode_prompt(text), max_tokens=1))
    engine.encode_image.side_effect = phi_edge.GenerationCancelled
    with pytest.raises(phi_edge.GenerationCancelled):
        tight.start(tight.encode_prompt(text + "<|image_1|>", [Image.new("RGB", (9, 9))]))
    assert engine.begin.call_count == 1
    tight.start(tight.encode_prompt(text))
    assert engine.begin.call_count == 1


def test_info_tells_what_a_request_takes() -> None:
    arguments = ["estimate", "--json", "--prompt-tokens", "30", "--images", "2", "--num-crops", "4"]
    command = [sys.executable, "-m", "phi_edge", *arguments, "--max-tokens", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["prompt_tokens"] == 30 + 2 * 757
    assert facts["tokens"] == facts["prompt_tokens"] + 100
    assert facts["crops"] == 10
    needs = predict_needs(MANIFEST, facts["tokens"], [(672, 672)] * 2)
    assert (facts["cache_bytes"], facts["peak_bytes"]) == (needs.cache_bytes, needs.peak_bytes)
