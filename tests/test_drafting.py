"""Drafts change how fast tokens come, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from typing_extensions import override

import phi_edge
from phi_edge import GenerationOptions, Prompt, PromptError
from phi_edge.generation import drafting
from phi_edge.generation.drafting import DraftingRun, PromptLookup
from phi_edge.generation.loop import GenerationEvent
from phi_edge.loading import BUNDLED_MODEL

from .conftest import GoldenSet
from .helpers.engines import WatchedEngine
from .helpers.requests import SCHEMA
from .helpers.sequences import EXACT, random_ids


@pytest.fixture(scope="module")
def tiny() -> Iterator[phi_edge.Model]:
    with phi_edge.load_model() as model:
        yield model


def read(lookup: PromptLookup, token_ids: list[int]) -> int:
    """Go through a text as a completion; how many drafted tokens it took, right or wrong."""
    num_drafted = at = 0
    while at < len(token_ids):
        draft = lookup.draft()
        right = 0
        while right < len(draft) and draft[right : right + 1] == token_ids[at + right :][:1]:
            right += 1
        if draft:
            lookup.note(len(draft), right)
        num_drafted += len(draft)
        for token_id in token_ids[at : at + right + 1]:
            lookup.add(token_id)
        at += right + 1
    return num_drafted


def test_what_is_copied_is_drafted() -> None:
    text = random_ids(300).tolist()
    lookup = PromptLookup(text)
    read(lookup, text[100:110])
    assert lookup.draft() == text[110 : 110 + len(lookup.draft())]
    read(lookup, text[110:200])
    assert lookup.draft() == text[200:216], "the longest draft"


def test_what_is_new_is_not_drafted() -> None:
    """Nor is what pretends to repeat itself, but for a few tokens at first."""
    assert read(PromptLookup(range(3, 300)), list(range(300, 600))) == 0
    fillers = np.random.default_rng(0).integers(300, 10**6, 400).tolist()
    misleading = [token for filler in fillers for token in (5, 6, 7, filler)]
    assert read(PromptLookup([]), misleading) < 1.1 * len(misleading) / 2
    assert read(PromptLookup([]), [token for filler in fillers for token in (5, 6, filler)]) < 10


def test_images_are_not_drafted() -> None:
    prompt = [1, 5, 6, 7, 8, 9, 10, 11, 12, -1, -1, -1, 5, 6, 7, 8, 9]
    lookup = PromptLookup(prompt)
    assert lookup.draft() == [10, 11]
    lookup.add(10)
    assert lookup.draft() == [11, 12]
    assert PromptLookup([1, 5, 6, -1, -1, 5, 6]).draft() == []


@pytest.mark.parametrize(("length", "num_added"), [(20, 6), (4090, 6), (4093, 3), (4096, 1)])
def test_one_step_gives_what_single_steps_give(
    model: phi_edge.Model, length: int, num_added: int
) -> None:
    """As far as the short RoPE factors hold: beyond, a guess could cost two prefills."""
    tokens = random_ids(6, seed=1).tolist()
    prompt = Prompt(random_ids(length))
    run, plain = model.start(prompt), model.start(prompt)
    assert min(run.room, len(tokens)) == num_added
    rows = run.append(tokens[:num_added])
    assert run.num_tokens == length + num_added
    expected = np.stack([plain.append(token) for token in tokens[:num_added]])
    np.testing.assert_allclose(rows, expected, rtol=0, atol=EXACT)
    np.testing.assert_array_equal(run.logits, rows[-1])
    run.rewind(length + 1)
    np.testing.assert_allclose(run.logits, expected[0], rtol=0, atol=EXACT)


def test_guesses_are_checked(model: phi_edge.Model) -> None:
    run = model.start(Prompt(random_ids(20)))
    with pytest.raises(PromptError, match="outside the vocabulary"):
        run.append([5, -1])
    assert run.num_tokens == 20


def tokens_of(events: Iterator[GenerationEvent]) -> list[Any]:
    return [
        (
            event.token_id,
            event.text,
            event.finish_reason,
            event.logprobs and event.logprobs.top[0][0],
        )
        for event in events
    ]


JSON = GenerationOptions(temperature=1, seed=5, json_schema=SCHEMA, max_tokens=60, num_logprobs=1)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.2, "seed": 3},
    {"temperature": 0.8, "seed": 4, "top_p": 0.9, "top_k": 40, "presence_penalty": 0.5},
    {"frequency_penalty": 1.5, "logit_bias": {7: 2.0}},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("wrong_at", [0, 1, 3, 99])
def test_the_answer_is_the_same(
    compact: GoldenSet,
    model: phi_edge.Model,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    wrong_at: int,
) -> None:
    """With drafts that are right up to some token, whatever else shapes the answer."""
    prompt = Prompt(compact.arrays["text__ids"])

    def answer(draft_tokens: int) -> list[Any]:
        return tokens_of(
            model.generate(
                prompt, max_tokens=40, num_logprobs=1, draft_tokens=draft_tokens, **options
            )
        )

    expected = answer(0)
    tokens = [token_id for token_id, *_ in expected]
    steps = foresee(monkeypatch, tokens, wrong_at)
    assert answer(16) == expected
    assert len(steps) == {0: 39, 1: 20, 3: 10, 99: 7}[wrong_at]


def foresee(monkeypatch: pytest.MonkeyPatch, tokens: list[int], wrong_at: int) -> list[int]:
    """Make drafts of the next five tokens, with one wrong; gives the list of steps."""
    steps: list[int] = []

    class Foreseen(PromptLookup):
        num_added = 0

        @override
        def add(self, token_id: int) -> None:
            self.num_added += 1
            super().add(token_id)

        @override
        def draft(self) -> list[int]:
            steps.append(self.num_added)
            guessed = tokens[self.num_added :][:5]
            if wrong_at < len(guessed):
                guessed[wrong_at] ^= 1
            return guessed

    monkeypatch.setattr(drafting, "PromptLookup", Foreseen)
    return steps


@pytest.mark.parametrize("wrong_at", [0, 2, 99])
def test_constrained_answers_are_the_same(
    tiny: phi_edge.Model, monkeypatch: pytest.MonkeyPatch, wrong_at: int
) -> None:
    prompt = tiny.encode_prompt("<|user|>\nAnswer as JSON.<|end|>\n<|assistant|>\n")

    def answer(draft_tokens: int) -> list[Any]:
        return tokens_of(tiny.generate(prompt, JSON, draft_tokens=draft_tokens))

    expected = answer(0)
    steps = foresee(monkeypatch, [token for token, *_ in expected], wrong_at)
    assert answer(16) == expected
    assert len(steps) <= len(expected)


def test_what_a_schema_forces_takes_no_steps_of_its_own(
    tiny: phi_edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = WatchedEngine(BUNDLED_MODEL, tiny.manifest, "cpu")
    watched = phi_edge.Model(tiny.manifest, tiny.tokenizer, engine)
    prompt = tiny.encode_prompt("<|user|>\nAnswer as JSON.<|end|>\n<|assistant|>\n")
    # What prompt lookup drafts is in no JSON, so that what is checked is what is forced.
    not_json = tiny.tokenizer.token_to_id("<|user|>")
    monkeypatch.setattr(PromptLookup, "draft", lambda _: [not_json])

    def answer(draft_tokens: int) -> tuple[list[Any], list[int]]:
        """What is answered, and the tokens of each step after the prefill."""
        engine.steps.clear()
        found = tokens_of(watched.generate(prompt, JSON, draft_tokens=draft_tokens))
        return found, [num_tokens for _, num_tokens in engine.steps[1:]]

    expected, steps = answer(0)
    assert steps == [1] * (len(expected) - 1)
    found, steps = answer(16)
    assert found == expected
    assert sum(steps) == len(expected) - 1, "every draft was right"
    assert len(steps) < len(expected) / 2
    assert max(steps) > 3
    assert max(answer(2)[1]) == 3


def test_stop_string_inside_of_a_draft(
    compact: GoldenSet,
    compact_fp32: Path,
    model: phi_edge.Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run keeps nothing of the draft beyond."""
    prompt = Prompt(compact.arrays["text__ids"])
    events = list(model.generate(prompt, max_tokens=20, draft_tokens=0))
    text = "".join(event.text for event in events)
    stop = text[8:10]
    plain = list(model.generate(prompt, max_tokens=20, draft_tokens=0, stop=stop))
    foresee(monkeypatch, [event.token_id for event in events], 99)
    with phi_edge.load_model(compact_fp32) as caching:
        drafted = list(caching.generate(prompt, max_tokens=20, stop=stop))
        # What is kept has the tokens that were appended: all but the last.
        longer = Prompt(np.append(prompt.input_ids, [event.token_id for event in events]))
        caplog.set_level(logging.INFO, "phi_edge")
        caching.start(longer)
    assert drafted == plain
    num_kept = prompt.num_tokens + len(plain) - 1
    assert f"{num_kept} of {longer.num_tokens} prompt tokens are cached" in caplog.text


def test_repeats_take_fewer_steps(tiny: phi_edge.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says the same again, here forced to, does so several tokens at a time."""
    phrase = random_ids(30, seed=2).tolist()
    run = tiny.start(Prompt(np.array([1, *phrase, 9, 9])))
    step = Mock(wraps=run.append)
    monkeypatch.setattr(run, "append", step)
    ahead = DraftingRun(run, 200, 16)
    for token_id in phrase * 3:
        ahead.append(token_id)
    assert step.call_count < 30
    assert ahead.num_tokens == 33 + 90
