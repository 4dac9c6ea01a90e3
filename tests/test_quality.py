"""The generated questions, and the evaluation that asks them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

import phi_edge
from benchmarks.quality.evaluate import (
    MULTI_TURN,
    Question,
    Score,
    compare,
    evaluate,
    is_right,
    select_questions,
)
from benchmarks.quality.questions import TASKS, Turn, make_example
from benchmarks.quality.scenes import COLOURS, ChartScene, ShapesScene, draw, is_held_out
from benchmarks.quality.tiny import write_configuration

if TYPE_CHECKING:
    from benchmarks.quality.train import Batch

Pixels = npt.NDArray[np.uint8]

NUM_EXAMPLES = 300


def test_examples_repeat_themselves_to_the_pixel() -> None:
    for number in range(20):
        first, second = (make_example("train", number) for _ in "ab")
        assert first == second
        for one, other in zip(first.images(), second.images(), strict=True):
            assert one.size == (336, 336)
            assert one.tobytes() == other.tobytes()


def test_no_layout_is_in_both_splits() -> None:
    for split, held_out in (("train", False), ("held_out", True)):
        examples = [make_example(split, number) for number in range(NUM_EXAMPLES)]  # type: ignore[arg-type]
        scenes = [scene for example in examples for scene in example.scenes]
        assert len(scenes) > NUM_EXAMPLES / 2
        assert {is_held_out(scene) for scene in scenes} == {held_out}


def test_every_task_comes_up() -> None:
    examples = (make_example("train", number) for number in range(NUM_EXAMPLES))
    tasks = Counter(turn.task for example in examples for turn in example.turns)
    assert set(tasks) == set(TASKS)


def test_answers_are_those_of_the_picture() -> None:
    """Read off the pixels, not off the scene's description."""
    checked = 0
    for number in range(NUM_EXAMPLES):
        example = make_example("held_out", number)
        if len(example.scenes) != 1:
            continue
        (scene,) = example.scenes
        pixels = np.asarray(draw(scene))
        for turn in example.turns:
            if turn.task == "tallest" and isinstance(scene, ChartScene):
                tops = {bar.colour: _highest_row(pixels, bar.colour) for bar in scene.parts}
                assert min(tops, key=lambda colour: tops[colour]) in turn.answer
                checked += 1
            elif turn.task == "position" and isinstance(scene, ShapesScene):
                names = [thing.name for thing in scene.parts if thing.name in turn.question]
                names.sort(key=turn.question.index)
                one, other = (_centre(scene, pixels, name) for name in names)
                expected = (
                    ("left" if one[0] < other[0] else "right")
                    if "left or right" in turn.question
                    else ("above" if one[1] < other[1] else "below")
                )
                assert turn.answer == expected
                checked += 1
    assert checked > 100


def _mask(pixels: Pixels, colour: str) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = (pixels == COLOURS[colour]).all(-1)
    return mask


def _highest_row(pixels: Pixels, colour: str) -> int:
    return int(_mask(pixels, colour).any(1).argmax())


def _centre(scene: ShapesScene, pixels: Pixels, name: str) -> tuple[float, float]:
    """Centre of a shape's pixels, near where the scene says that it stands."""
    thing = next(thing for thing in scene.parts if thing.name == name)
    rows, columns = np.nonzero(_mask(pixels, thing.colour))
    near = np.hypot(columns - thing.x, rows - thing.y) <= thing.radius + 1
    return float(columns[near].mean()), float(rows[near].mean())


def test_questions_of_an_evaluation() -> None:
    questions = select_questions(5)
    assert Counter(question.task for question in questions) == dict.fromkeys(
        (*TASKS, MULTI_TURN), 5
    )
    assert all(question.index > 0 for question in questions if question.with_history)


def test_earlier_turns_stand_before_a_question(model: phi_edge.Model) -> None:
    example = next(
        example
        for number in itertools.count()
        if len((example := make_example("held_out", number)).turns) > 2 and example.scenes
    )
    alone, after = (Question(example, 2, flag).encode(model) for flag in (False, True))
    assert after.num_tokens > alone.num_tokens
    num_slots = 757 * len(example.scenes)  # the compact model's default is four crops
    for prompt in (alone, after):
        assert (prompt.input_ids < 0).sum() == num_slots


@pytest.mark.parametrize(
    ("answer", "task", "expected", "right"),
    [
        (" The red bar.", "tallest", "The red bar.", True),
        ("the red bar", "tallest", "The red bar.", True),
        ("red", "tallest", "The red bar.", False),
        ('{"answer":"4"}', "json", '{"answer": "4"}', True),
        ('{"answer": "5"}', "json", '{"answer": "4"}', False),
        ('{"answer": "4"', "json", '{"answer": "4"}', False),
    ],
)
def test_is_right(answer: str, task: str, expected: str, *, right: bool) -> None:
    assert is_right(answer, Turn(task, "?", expected)) is right


def test_interval() -> None:
    """Against published values: 10 of 20, and none of 10 (Newcombe 1998, method 3)."""
    assert Score(10, 20).interval() == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert Score(0, 10).interval() == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_evaluation_of_a_model_that_knows_nothing(model: phi_edge.Model) -> None:
    questions = [question for question in select_questions(2) if question.task in ("facts", "word")]
    scores = evaluate(model, questions)
    assert scores == {"word": Score(0, 2), "facts": Score(0, 2), "all": Score(0, 4)}


def test_agreement(model: phi_edge.Model) -> None:
    questions = [question for question in select_questions(1) if question.task == "facts"]
    same = compare(model, model, questions)
    assert same.num_tokens == same.num_equal > 0
    assert same.kl == pytest.approx(0, abs=1e-6)


def test_tiny_configuration(tmp_path: Path) -> None:
    """Everything of the checkpoint but the weights; the tokenizer fits the questions."""
    write_configuration(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    for number in range(50):
        for turn in make_example("held_out", number).turns:
            for text in (turn.question, turn.answer):
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                assert tokenizer.decode(ids) == text
    digits = tokenizer.encode("4821", add_special_tokens=False).tokens
    assert digits == ["▁", "4", "8", "2", "1"]


@pytest.mark.reference
def test_the_trained_model_is_the_one_that_runs(tmp_path: Path) -> None:
    """Torch gives the logits of the exported package, for text and for images."""
    torch = pytest.importorskip("torch")
    from benchmarks.quality.train import Batches, Phase, Training
    from export import Checkpoint, export_package
    from quantize import make_recipe

    torch.manual_seed(0)
    write_configuration(tmp_path / "checkpoint")
    training = Training(tmp_path / "checkpoint")
    training.save()
    export_package(
        Checkpoint(tmp_path / "checkpoint"), tmp_path / "package", make_recipe("fp32", "cpu")
    )
    resumed = Training(tmp_path / "checkpoint")
    # The package has bfloat16 weights, so the comparison uses the same.
    phi3v = resumed.trainee.phi3v
    state = {name: t.to(torch.bfloat16).float() for name, t in phi3v.state_dict().items()}
    phi3v.load_state_dict(state)

    batches = Batches(tmp_path / "checkpoint", 0, Phase(1, batch_size=1, vision_only=False))
    with phi_edge.load_model(tmp_path / "package") as model, torch.no_grad():
        for number in range(12):
            example = make_example("train", number)
            batch = batches.make_batch(range(number, number + 1))
            patches = phi3v.model["vision_embed_tokens"].encode(batch.images)
            hidden = phi3v(batch.ids, batch.positions, batch.segments, patches)
            expected = phi3v.lm_head(hidden)[0].numpy()
            crops = tuple(model.preprocess(image) for image in example.images())
            for ids, last in _asked_alone(batch):
                run = model.start(phi_edge.Prompt(ids, crops))
                np.testing.assert_allclose(run.logits, expected[last], rtol=0, atol=1e-4)


def _asked_alone(batch: Batch) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Each turn of a batch of one example: what it sees, and where its last token is."""
    ids, segments = batch.ids[0].numpy(), batch.segments[0].numpy()
    for segment in dict.fromkeys(segments[segments > 0].tolist()) or [0]:
        seen = (segments == 0) | (segments == segment)
        yield ids[seen], int(np.flatnonzero(segments == segment)[-1])
