"""Completions and streams: what they say, and what the fields of a request do to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import phi_edge
from phi_edge import HttpResponseError
from phi_edge.api.parse import parse_request
from phi_edge.api.safety import BlockList
from phi_edge.api.service import ChatService

from .helpers.engines import WatchedEngine
from .helpers.requests import (
    USER,
    Body,
    body,
    complete,
    streamed_text,
    text,
)


def test_completion(service: ChatService) -> None:
    answer = complete(service)
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 6
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["tool_calls"] is None
    assert choice["logprobs"] is None


def test_a_stream_says_what_the_completion_says(service: ChatService) -> None:
    chunks = list(service.stream(parse_request(body(stream=True, max_tokens=12))))
    whole = complete(service, max_tokens=12)
    assert streamed_text(chunks) == text(whole)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}
    assert chunks[-1]["usage"] == whole["usage"]
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_system_messages_become_user_messages(model: phi_edge.Model) -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER]
    as_user = [{"role": "user", "content": "Be brief."}, USER]
    service = ChatService(model)
    assert text(complete(service, messages=messages)) == text(complete(service, messages=as_user))
    native = complete(ChatService(model, system_role="system"), messages=messages)
    prompt = model.encode_prompt(
        "<|system|>\nBe brief.<|end|>\n<|user|>\nWhat is the sea?<|end|>\n<|assistant|>\n"
    )
    assert native["usage"]["prompt_tokens"] == prompt.num_tokens
    assert text(native) == "".join(e.text for e in model.generate(prompt, max_tokens=6))


def test_choices_differ_and_repeat_with_their_seed(service: ChatService) -> None:
    fields: Body = {"n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 10}
    answer = complete(service, **fields)
    texts = [text(answer, index) for index in range(3)]
    assert len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] <= 30
    again = complete(service, **fields)
    assert [text(again, index) for index in range(3)] == texts
    chunks = list(service.stream(parse_request(body(**fields, stream=True))))
    assert [streamed_text(chunks, index) for index in range(3)] == texts


def test_choices_share_one_prefill(fresh: phi_edge.Model, own_engine: WatchedEngine) -> None:
    complete(ChatService(fresh), n=4)
    assert own_engine.num_begun == 1
    prefills = [num_new for _, num_new in own_engine.steps if num_new > 1]
    assert len(prefills) == 1


def test_a_nucleus_of_nothing_is_greedy(service: ChatService) -> None:
    assert text(complete(service, temperature=2, top_p=0)) == text(complete(service))


def test_stop(service: ChatService) -> None:
    whole = text(complete(service, max_tokens=20))
    stop = whole[3:5]
    answer = complete(service, max_tokens=20, stop=["never there", stop])
    assert text(answer) == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert text(complete(service, max_tokens=20, stop=stop)) == text(answer)


def test_logit_bias_bans_and_picks(service: ChatService, model: phi_edge.Model) -> None:
    wanted = model.tokenizer.token_to_id("k")
    answer = complete(service, logit_bias={str(wanted): 100})
    assert text(answer) == "kkkkkk"
    first = complete(service, logprobs=True)["choices"][0]["logprobs"]
    assert first is not None
    (bytes_first,) = [entry["bytes"] for entry in first["content"][:1]]
    greedy = model.start(_prompt(model)).logits.argmax()
    banned = complete(service, logprobs=True, logit_bias={str(greedy): -100})
    entries = banned["choices"][0]["logprobs"]
    assert entries is not None
    assert entries["content"][0]["bytes"] != bytes_first


def _prompt(model: phi_edge.Model) -> phi_edge.Prompt:
    return model.encode_prompt("<|user|>\nWhat is the sea?<|end|>\n<|assistant|>\n")


def test_logprobs_are_those_of_the_raw_distribution(
    service: ChatService, model: phi_edge.Model
) -> None:
    """Whatever temperature, penalties and bias do."""
    logits = model.start(_prompt(model)).logits.astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    token = model.tokenizer.token_to_id("k")
    answer = complete(
        service,
        logprobs=True,
        top_logprobs=3,
        temperature=2,
        logit_bias={str(token): 100},
        presence_penalty=1,
    )
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs is not None
    first = logprobs["content"][0]
    assert first["bytes"] == list(b"k")
    assert first["logprob"] == pytest.approx(expected[token], abs=1e-5)
    top = [entry["logprob"] for entry in first["top_logprobs"]]
    assert top == pytest.approx(sorted(expected)[:-4:-1], abs=1e-5)
    assert len(logprobs["content"]) == 6


def test_streamed_logprobs_are_the_same(service: ChatService) -> None:
    fields: Body = {"logprobs": True, "top_logprobs": 1, "max_tokens": 8}
    whole = complete(service, **fields)["choices"][0]["logprobs"]
    assert whole is not None
    chunks = service.stream(parse_request(body(**fields, stream=True)))
    entries = [
        entry
        for chunk in chunks
        for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert entries == whole["content"]


def test_penalties_against_repetition(service: ChatService, model: phi_edge.Model) -> None:
    """By the published formula: logit - presence - frequency x count."""
    token = model.tokenizer.token_to_id("k")
    biased: Body = {"logit_bias": {str(token): 12}, "max_tokens": 12}
    without = text(complete(service, **biased)).count("k")
    with_penalty = text(complete(service, **biased, frequency_penalty=2)).count("k")
    assert without == 12
    assert 1 <= with_penalty < 12


def test_a_prompt_that_is_filtered(model: phi_edge.Model) -> None:
    service = ChatService(model, content_filters=[BlockList(["knife skills"])])
    with pytest.raises(HttpResponseError) as raised:
        complete(service, messages=[{"role": "user", "content": "Great Knife\n skills!"}])
    error: Any = raised.value.response.json()["error"]
    assert {**error, "message": ""} == {
        "message": "",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
    }
    assert complete(service, messages=[{"role": "user", "content": "penknife skills"}])


def test_a_completion_that_is_filtered(model: phi_edge.Model) -> None:
    token = model.tokenizer.token_to_id("k")
    fields: Body = {"logit_bias": {str(token): 12}, "frequency_penalty": 2, "max_tokens": 12}
    whole = text(complete(ChatService(model), **fields))
    term = next(word for word in whole.replace("\ufffd", " ").split() if word.isalnum())
    service = ChatService(model, content_filters=[BlockList([term])])
    answer = complete(service, **fields)
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert term not in text(answer)
    chunks = list(service.stream(parse_request(body(**fields, stream=True))))
    assert term not in streamed_text(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
