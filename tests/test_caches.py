"""What is kept between questions changes no answer, and one image never answers for another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import phi_edge
from phi_edge import Prompt
from phi_edge.cache.memory import FeatureCache, PrefixCache, count_common_tokens
from phi_edge.engine.ort import OrtEngine
from phi_edge.image.crops import ImageCrops
from phi_edge.text.prompt import chat_text

from .conftest import GoldenSet, count_cached
from .helpers.engines import WatchedEngine
from .helpers.sequences import greedy_tokens, start

ONE_IMAGE = "<|image_1|>\n"


@pytest.fixture
def caching(compact_fp32: Path) -> Iterator[phi_edge.Model]:
    """A model of its own, with empty caches."""
    with phi_edge.load_model(compact_fp32) as model:
        yield model


def crops(value: float, num_tokens_wide: int = 1) -> ImageCrops:
    pixels = np.full((1 + num_tokens_wide, 3, 336, 336), value, np.float32)
    return ImageCrops(pixels, (336, 336 * num_tokens_wide))


def test_a_second_question_about_an_image_prefills_only_itself(
    caching: phi_edge.Model, engine: OrtEngine, compact: GoldenSet, caplog: pytest.LogCaptureFixture
) -> None:
    image = compact.image("wide_90x60")
    questions = ("What is it?", "How many are there?")
    prompts = [
        caching.encode_prompt(chat_text([("user", ONE_IMAGE + question)]), [image])
        for question in questions
    ]
    greedy_tokens(caching, prompts[0])
    assert count_cached(caching, prompts[1], caplog) > prompts[1].num_tokens - 40
    run = caching.start(prompts[1])
    features = engine.encode_image(prompts[1].images[0])
    fresh = start(engine, prompts[1].input_ids, features)
    np.testing.assert_array_equal(run.input_ids, fresh.input_ids)
    np.testing.assert_allclose(run.logits, fresh.logits, rtol=0, atol=2e-5)


def test_the_next_turn_of_a_conversation(
    caching: phi_edge.Model, fresh: phi_edge.Model, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [("user", "What is the sea? " * 20)]
    first = caching.encode_prompt(chat_text(turns))
    greedy_tokens(caching, first)
    longer = [*turns, ("assistant", "Water."), ("user", "Why?")]
    second = caching.encode_prompt(chat_text(longer))
    assert count_cached(caching, second, caplog) > 150
    assert greedy_tokens(caching, second) == greedy_tokens(fresh, second)


def test_the_same_prompt_again(caching: phi_edge.Model, caplog: pytest.LogCaptureFixture) -> None:
    prompt = caching.encode_prompt(chat_text([("user", "What is the sea?")]))
    first = greedy_tokens(caching, prompt)
    assert count_cached(caching, prompt, caplog) == prompt.num_tokens
    assert greedy_tokens(caching, prompt) == first
    one, other = caching.start(prompt), caching.start(prompt)
    np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=2e-5)


def test_a_run_has_one_user_at_a_time(caching: phi_edge.Model) -> None:
    """A stream that is still read is not disturbed by the same question."""
    prompt = caching.encode_prompt(chat_text([("user", "What is the sea?")]))
    expected = greedy_tokens(caching, prompt)
    events = caching.generate(prompt, max_tokens=8)
    tokens = [next(events).token_id]
    assert greedy_tokens(caching, prompt) == expected
    tokens += [event.token_id for event in events]
    assert tokens == expected


def test_across_the_change_of_rope_factors(caching: phi_edge.Model, engine: OrtEngine) -> None:
    """What was cached with the short factors is of no use beyond 4,096 tokens, nor back."""
    short = caching.encode_prompt(chat_text([("user", "sea " * 1300)]))
    long = caching.encode_prompt(chat_text([("user", "sea " * 1400)]))
    assert short.num_tokens < 4096 < long.num_tokens
    for prompt in (short, long, short):
        fresh = start(engine, prompt.input_ids, np.empty((0, 64), np.float32))
        with caching.start(prompt) as run:
            np.testing.assert_allclose(run.logits, fresh.logits, rtol=0, atol=2e-5)


def test_two_conversations_are_kept(
    caching: phi_edge.Model, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [
        caching.encode_prompt(chat_text([("user", text * 30)])) for text in ("sea ", "land ")
    ]
    for prompt in prompts:
        greedy_tokens(caching, prompt)
    for prompt in prompts:
        assert count_cached(caching, prompt, caplog) == prompt.num_tokens


def test_a_long_conversation_is_not_given_up_for_a_short_one(
    caching: phi_edge.Model, caplog: pytest.LogCaptureFixture
) -> None:
    system = ("system", "Be brief.")
    long = caching.encode_prompt(chat_text([system, ("user", "sea " * 100)]))
    greedy_tokens(caching, long)
    short = caching.encode_prompt(chat_text([system, ("user", "land")]))
    assert count_cached(caching, short, caplog) == 0
    assert count_cached(caching, long, caplog) == long.num_tokens


def test_memory_is_bounded(caching: phi_edge.Model) -> None:
    prompts = [
        caching.encode_prompt(chat_text([("user", text * 30)])) for text in ("sea ", "land ")
    ]
    runs = [caching.start(prompt) for prompt in prompts]
    assert runs[0].num_bytes >= prompts[0].num_tokens * 8 * 16
    cache = PrefixCache(max(run.num_bytes for run in runs))
    for prompt, run in zip(prompts, runs, strict=True):
        cache.put(prompt, run)
    assert cache.take(prompts[0]) is None
    assert cache.take(prompts[1]) is runs[1]
    nothing = PrefixCache(0)
    nothing.put(prompts[0], runs[0])
    assert nothing.take(prompts[0]) is None


def test_features_are_bounded_and_the_oldest_go() -> None:
    features = np.zeros((10, 8), np.float32)
    cache = FeatureCache(2 * features.nbytes)
    one, two, three = crops(0.1), crops(0.2), crops(0.3)
    cache.put(one, features)
    cache.put(two, features)
    assert cache.get(crops(0.1)) is features  # used, so the second is the oldest now
    cache.put(three, features)
    assert cache.get(two) is None
    assert cache.get(one) is cache.get(three) is features
    assert cache.shrink(features.nbytes) == features.nbytes
    assert cache.get(one) is None
    assert cache.get(three) is features
    assert cache.shrink(0) == 0
    assert cache.get(three) is None


def test_images_are_told_apart_by_every_pixel() -> None:
    image = crops(0.5)
    changed = image.pixel_values.copy()
    changed[-1, -1, -1, -1] = np.nextafter(changed[-1, -1, -1, -1], np.float32(1))
    others = [
        dataclasses.replace(image, pixel_values=changed),
        dataclasses.replace(image, image_size=(672, 336)),
        crops(0.5, 2),
    ]
    assert crops(0.5).digest == image.digest
    assert image.digest not in {other.digest for other in others}


def with_digest(image: ImageCrops, digest: bytes) -> ImageCrops:
    """An image that claims a digest, for collisions that nobody can make."""
    copy = dataclasses.replace(image)
    copy.__dict__["digest"] = digest
    return copy


def test_digests_that_begin_alike_are_not_the_same() -> None:
    one, other = (with_digest(crops(0.5), b"\0" * 31 + bytes([last])) for last in (1, 2))
    cache = FeatureCache(10**6)
    cache.put(one, np.zeros((10, 8), np.float32))
    assert cache.get(other) is None
    ids = np.full(one.num_tokens, -1)
    prompts = (Prompt(ids, (image,)) for image in (one, other))
    keys = [prompt.image_keys for prompt in prompts]
    assert count_common_tokens(ids, keys[0], ids, keys[1]) == 0


# What a user asks after another has asked: (images, turns) of both.
RED, BLUE = Image.new("RGB", (80, 60), "red"), Image.new("RGB", (80, 60), "blue")
Asked = tuple[Sequence[Image.Image | ImageCrops], Sequence[tuple[str, str]]]
WHAT = [("user", "<|image_1|>\nWhat is it?")]
BOTH = [("user", "<|image_1|>\n<|image_2|>\nWhat is it?")]
LATER = [*WHAT, ("assistant", "A square."), ("user", "Of which colour?")]


def one_pixel_changed() -> Image.Image:
    image = RED.copy()
    image.putpixel((79, 59), (0, 0, 255))
    return image


def same_thumbnail(model: phi_edge.Model) -> tuple[ImageCrops, ImageCrops]:
    """Images of which all but the global crop, which comes first, is different."""
    image = model.preprocess(RED, 4)
    pixels = image.pixel_values.copy()
    pixels[1:] = -pixels[1:]
    return image, dataclasses.replace(image, pixel_values=pixels)


def same_crops(model: phi_edge.Model) -> tuple[ImageCrops, ImageCrops]:
    """The same crops, once beside one another and once one below the other."""
    image = model.preprocess(Image.new("RGB", (80, 40), "red"), 2)
    return image, dataclasses.replace(image, image_size=image.image_size[::-1])


@pytest.mark.parametrize(
    "make",
    [
        lambda _: (([RED], WHAT), ([BLUE], WHAT)),
        lambda _: (([RED], WHAT), ([one_pixel_changed()], WHAT)),
        lambda _: (([RED], WHAT), ([RED.convert("L")], WHAT)),
        lambda _: (([RED], WHAT), ([RED.transpose(Image.Transpose.ROTATE_90)], WHAT)),
        lambda _: (([RED], WHAT), ([RED.resize((160, 60))], WHAT)),
        lambda model: (([RED], WHAT), ([model.preprocess(RED, 1)], WHAT)),
        lambda model: tuple(([image], WHAT) for image in same_thumbnail(model)),
        lambda model: tuple(([image], WHAT) for image in same_crops(model)),
        lambda _: (([RED, BLUE], BOTH), ([BLUE, RED], BOTH)),
        lambda _: (([RED, BLUE], BOTH), ([RED, RED], BOTH)),
        lambda _: (([RED, BLUE], BOTH), ([BLUE], WHAT)),
        lambda _: (([RED], LATER), ([BLUE], LATER)),
        lambda _: (([RED], WHAT), ([BLUE], LATER)),
        lambda _: (([], [("user", "What is it?")]), ([RED], WHAT)),
    ],
)
def test_what_one_user_asked_does_not_answer_another(
    compact_fp32: Path,
    engine: OrtEngine,
    model: phi_edge.Model,
    tmp_path: Path,
    make: Callable[[phi_edge.Model], tuple[Asked, Asked]],
) -> None:
    """Neither from memory nor, in another process, from the disk."""
    first, second = (
        model.encode_prompt(chat_text(turns), images, num_crops=4) for images, turns in make(model)
    )
    features = [np.empty((0, 64), np.float32), *map(engine.encode_image, second.images)]
    fresh = start(engine, second.input_ids, np.concatenate(features))
    with phi_edge.load_model(compact_fp32, disk_cache=tmp_path) as asked:
        greedy_tokens(asked, first)
        from_memory = asked.start(second)
        with phi_edge.load_model(compact_fp32, disk_cache=tmp_path) as other:
            from_disk = other.start(second)
            for run in (from_memory, from_disk):
                np.testing.assert_allclose(run.logits, fresh.logits, rtol=0, atol=2e-5)


def test_common_tokens() -> None:
    red, blue = crops(0.1), crops(0.2)
    size = red.num_tokens

    def prompt(*parts: int | ImageCrops) -> Prompt:
        images = [part for part in parts if isinstance(part, ImageCrops)]
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else [-1 - images.index(part)] * size
        return Prompt(np.array(ids, np.int64), tuple(images))

    def common(first: tuple[int | ImageCrops, ...], second: tuple[int | ImageCrops, ...]) -> int:
        one, other = prompt(*first), prompt(*second)
        return count_common_tokens(one.input_ids, one.image_keys, other.input_ids, other.image_keys)

    assert common((1, 2, 3), (1, 2, 4, 5)) == 2
    assert common((1, 2), (1, 2, 4)) == 2
    assert common((1, red, 2), (1, red, 2, 3)) == size + 2
    assert common((1, red, 2), (1, blue, 2)) == 1
    assert common((1, red, 2, blue, 3), (1, red, 2, red, 3)) == size + 2
    assert common((1, red, 2, blue, 3), (1, red, 2, blue, 4)) == 2 * size + 2
    assert common((1, red), (1, 5, 6)) == 1
    assert common((9,), (1,)) == 0


def test_an_image_is_not_encoded_again(
    fresh: phi_edge.Model, own_engine: WatchedEngine, compact: GoldenSet
) -> None:
    for name in ("wide_90x60", "wide_90x60", "tall_50x170", "wide_90x60"):
        prompt = fresh.encode_prompt(
            chat_text([("user", ONE_IMAGE + "?")]), [compact.image(name)], num_crops=1
        )
        greedy_tokens(fresh, prompt)
    assert own_engine.num_encoded == 2
