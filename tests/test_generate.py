"""Generation through the public names."""

from __future__ import annotations

import pytest

import phi_edge
from phi_edge import GenerationEvent, Prompt

from .conftest import GoldenSet


def golden_prompt(compact: GoldenSet) -> Prompt:
    return Prompt(compact.arrays["text__ids"])


def test_events(compact: GoldenSet, model: phi_edge.Model) -> None:
    expected = compact.manifest["logits"]["text"]["greedy_ids"]
    events = list(model.generate(golden_prompt(compact), max_tokens=8))
    assert [event.token_id for event in events] == expected
    assert [event.finish_reason for event in events] == [None] * 7 + ["length"]


def test_end_token(compact: GoldenSet, model: phi_edge.Model) -> None:
    """The end token is an event of its own, without text."""
    end = model.manifest.model.eos_token_ids[0]
    events = list(model.generate(golden_prompt(compact), max_tokens=8, logit_bias={end: 1000}))
    assert events == [GenerationEvent(end, "", "stop")]


def test_stop_string(compact: GoldenSet, model: phi_edge.Model) -> None:
    prompt = golden_prompt(compact)
    whole = "".join(event.text for event in model.generate(prompt, max_tokens=8))
    stop = whole[3:5]
    events = list(model.generate(prompt, max_tokens=8, stop=stop))
    assert "".join(event.text for event in events) == whole[: whole.index(stop)]
    assert events[-1].finish_reason == "stop"
    assert len(events) <= 8


def test_seeded_sampling_repeats(compact: GoldenSet, model: phi_edge.Model) -> None:
    def tokens(seed: int) -> list[int]:
        events = model.generate(golden_prompt(compact), max_tokens=12, temperature=1.5, seed=seed)
        return [event.token_id for event in events]

    assert tokens(1) == tokens(1) != tokens(2)


def test_parameters_are_checked_at_once(compact: GoldenSet, model: phi_edge.Model) -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        model.generate(golden_prompt(compact), max_tokens=0)
    with pytest.raises(ValueError, match="temperature"):
        model.generate(golden_prompt(compact), temperature=-1)
    for token_id in (-1, 512):
        with pytest.raises(ValueError, match="logit_bias: token ids are 0 to 511"):
            model.generate(golden_prompt(compact), logit_bias={token_id: 1.0})
    with pytest.raises(ValueError, match="schema cannot be used"):
        model.generate(golden_prompt(compact), json_schema={"type": "foo"})
    with pytest.raises(TypeError, match="'temprature'"):
        model.generate(golden_prompt(compact), temprature=1)  # type: ignore[call-arg]


def test_an_image_is_encoded_once_a_conversation(compact: GoldenSet, model: phi_edge.Model) -> None:
    first, again, other = (
        model.preprocess(compact.image("wide_90x60"), num_crops) for num_crops in (1, 1, 4)
    )
    assert model.encode_image(first) is model.encode_image(again)
    assert model.encode_image(first) is not model.encode_image(other)
