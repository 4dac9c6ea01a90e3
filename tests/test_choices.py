"""Choices that decode together are those that would come one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import phi_edge
from phi_edge import ContextLengthError, GenerationCancelled, Prompt
from phi_edge.api.parse import parse_request
from phi_edge.api.response import Completion
from phi_edge.api.safety import BlockList
from phi_edge.api.service import ChatService
from phi_edge.engine.ort_sequence import OrtRun
from phi_edge.generation.loop import GenerationEvent
from phi_edge.planning.memory import MemoryBudget, predict_needs

from .helpers.engines import WatchedEngine
from .helpers.requests import (
    SCHEMA,
    Body,
    body,
    complete,
    json_format,
    streamed_text,
    text,
)
from .helpers.sequences import EXACT, random_ids

SAMPLED: Body = {"temperature": 1.3, "seed": 7, "max_tokens": 12}


@contextmanager
def one_at_a_time(
    model: phi_edge.Model, engine: WatchedEngine, num_tokens: int
) -> Iterator[phi_edge.Model]:
    """The model with no memory for more than so many tokens, so that choices take turns."""
    limit = predict_needs(model.manifest, num_tokens).peak_bytes
    manifest, tokenizer = model.manifest, model.tokenizer
    with phi_edge.Model(manifest, tokenizer, engine, max_ram_bytes=limit) as tight:
        yield tight
    assert {batch_size for batch_size, _ in engine.steps} == {1}


@pytest.fixture
def one_by_one(model: phi_edge.Model, own_engine: WatchedEngine) -> Callable[..., Completion]:
    """Completes as often as there are choices."""

    def ask(expected: Completion, **fields: Any) -> Completion:
        num_tokens = expected["usage"]["prompt_tokens"] + fields["max_tokens"]
        with one_at_a_time(model, own_engine, num_tokens) as tight:
            return complete(ChatService(tight), **fields)

    return ask


def numbers(choice: Any) -> list[float]:
    return [entry["logprob"] for entry in (choice.pop("logprobs") or {"content": []})["content"]]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 4, "max_tokens": 300},
        {"n": 10, "top_p": 0.9, "presence_penalty": 0.5, "logit_bias": {"7": 2}},
        {"n": 3, "temperature": 0, "logprobs": True, "top_logprobs": 2},
        {"n": 4, "logprobs": True, "temperature": 1.0},
        {"n": 4, "response_format": json_format(SCHEMA), "max_tokens": 60, "temperature": 1.0},
    ],
)
def test_choices_are_the_same(
    service: ChatService, one_by_one: Callable[..., Completion], fields: Body
) -> None:
    fields = {**SAMPLED, **fields}
    together = complete(service, **fields)
    expected = one_by_one(together, **fields)
    assert together["usage"] == expected["usage"]
    for choice, alone in zip(together["choices"], expected["choices"], strict=True):
        assert numbers(choice) == pytest.approx(numbers(alone), abs=EXACT)
        assert choice == alone


def test_one_ends_early(service: ChatService, one_by_one: Callable[..., Completion]) -> None:
    """A stop string ends it; the cache shrinks, and the others go on as they would."""
    whole = complete(service, n=3, **SAMPLED)
    stop = text(whole, 1)[2:4]
    fields: Body = {**SAMPLED, "n": 3, "stop": stop}
    together = complete(service, **fields)
    assert together == {
        **one_by_one(together, **fields),
        "id": together["id"],
        "created": together["created"],
    }
    reasons = [choice["finish_reason"] for choice in together["choices"]]
    assert reasons == ["length", "stop", "length"]
    assert together["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]


def test_chunks_come_mixed(service: ChatService) -> None:
    whole = complete(service, n=3, **SAMPLED)
    chunks = list(service.stream(parse_request(body(n=3, stream=True, **SAMPLED))))
    assert [streamed_text(chunks, index) for index in range(3)] == [
        text(whole, i) for i in range(3)
    ]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"].get("role") for choice in choices[:3]] == ["assistant"] * 3
    assert [choice["index"] for choice in choices] != sorted(choice["index"] for choice in choices)
    assert sum(choice["finish_reason"] is not None for choice in choices) == 3
    assert [chunk.get("usage") for chunk in chunks] == [None] * (len(chunks) - 1) + [whole["usage"]]


def test_a_choice_that_is_filtered_ends(model: phi_edge.Model, service: ChatService) -> None:
    """The others go on."""
    whole = complete(service, n=3, **SAMPLED)
    texts = [text(whole, index) for index in range(3)]
    words = [set(each.replace("\ufffd", " ").split()) for each in texts]
    term = max((word for word in words[0] - words[1] - words[2] if word.isalnum()), key=len)
    answer = complete(ChatService(model, content_filters=[BlockList([term])]), n=3, **SAMPLED)
    reasons = [choice["finish_reason"] for choice in answer["choices"]]
    assert reasons == ["content_filter", "length", "length"]
    assert [text(answer, index) for index in (1, 2)] == texts[1:]


def answers(
    model: phi_edge.Model, prompt: Prompt, max_tokens: int = 9
) -> list[list[GenerationEvent]]:
    found: list[list[GenerationEvent]] = [[] for _ in range(3)]
    for event in model.generate(prompt, temperature=1.3, seed=0, max_tokens=max_tokens, n=3):
        found[event.index].append(event)
    return found


@pytest.mark.parametrize("length", [4090, 4100])
def test_over_the_change_of_rope_factors_each_goes_on_alone(
    model: phi_edge.Model, own_engine: WatchedEngine, length: int
) -> None:
    """And beyond it, they go together again."""
    prompt = Prompt(random_ids(length))
    with one_at_a_time(model, own_engine, length + 9) as tight:
        assert answers(model, prompt) == answers(tight, prompt)


def test_an_engine_that_cannot_fork(model: phi_edge.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Prompt(random_ids(20))
    expected = answers(model, prompt)
    monkeypatch.setattr(OrtRun, "fork", lambda *_: None)
    assert answers(model, prompt) == expected


def test_together_they_take_fewer_steps(fresh: phi_edge.Model, own_engine: WatchedEngine) -> None:
    events = answers(fresh, Prompt(random_ids(20)))
    lengths = [len(each) for each in events]
    prefill, *steps = own_engine.steps
    assert prefill == (1, 20)
    assert steps == [(sum(length > at for length in lengths), 1) for at in range(1, max(lengths))]


def test_cancel_between_steps(model: phi_edge.Model) -> None:
    prompt = Prompt(random_ids(20))
    cancel = threading.Event()
    events = model.generate(prompt, max_tokens=9, n=3, cancel=cancel)
    assert [next(events).index for _ in range(6)] == [0, 1, 2] * 2
    cancel.set()
    with pytest.raises(GenerationCancelled):
        next(events)


def test_batch_rows_are_runs(model: phi_edge.Model) -> None:
    """Also where the cache doubles, and when rows are dropped."""
    prompt = Prompt(random_ids(250))
    run = model.start(prompt)
    batch = run.fork(3)
    assert batch is not None
    alone = [model.start(prompt) for _ in range(3)]
    for seed, rows in enumerate([[0, 1, 2]] * 8 + [[0, 2]] * 2 + [[2]] * 2):
        if len(rows) < 3 and seed in (8, 10):
            batch.keep([0, 2] if len(rows) == 2 else [1])
        tokens = random_ids(len(rows), seed).tolist()
        expected = [alone[row].append(token) for row, token in zip(rows, tokens, strict=True)]
        np.testing.assert_allclose(batch.append(tokens), expected, rtol=0, atol=EXACT)
    assert batch.num_tokens == 262
    assert run.num_tokens == 250


def test_a_batch_ends_with_the_short_factors(model: phi_edge.Model) -> None:
    batch = model.start(Prompt(random_ids(4096))).fork(2)
    assert batch is not None
    assert batch.num_tokens == batch.max_tokens == 4096
    with pytest.raises(ContextLengthError, match="4,096"):
        batch.append([5, 6])


def test_one_completion_is_ended_and_the_others_go_on(model: phi_edge.Model) -> None:
    prompt = Prompt(random_ids(20))
    with model.generate(prompt, max_tokens=9, n=3) as events:
        first = [next(events) for _ in range(3)]
        events.finish(1)
        rest = list(events)
    assert {event.index for event in rest} == {0, 2}
    assert events.usage == phi_edge.TokenUsage(20, len(first) + len(rest))


def test_memory_limits_the_batch(model: phi_edge.Model) -> None:
    manifest, prompt = model.manifest, Prompt(random_ids(100))
    assert MemoryBudget(manifest).batch_size(prompt, 50, 128) == 8
    limit = predict_needs(manifest, 100 + 3 * 150).peak_bytes
    for max_ram_bytes, batch_size in ((limit, 3), (limit - 1, 2), (1, 1)):
        tight = MemoryBudget(manifest, max_ram_bytes)
        assert tight.batch_size(prompt, 50, 8) == batch_size
        assert tight.batch_size(prompt, None, 8) == 1, "one may need all of it"
