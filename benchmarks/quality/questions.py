"""Questions and answers about scenes, by task.

An example is a conversation: one or two images, or none, and some turns about them. Training and
evaluation draw from different seeds and from layouts that the other never uses.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from PIL import Image

from phi_edge.text.prompt import image_tags

from .scenes import (
    SHAPES,
    WORDS,
    ChartScene,
    Scene,
    ShapesScene,
    TextScene,
    Thing,
    draw,
    is_held_out,
    make_chart,
    make_shapes,
    make_text,
)

Split = Literal["train", "held_out"]

TASKS = (
    *("colour", "shape", "count", "position", "number", "word", "tallest", "lowest"),
    *("compare", "describe", "two_images", "facts", "json"),
)

_MAX_TURNS = 12
JSON_REQUEST = " Answer as JSON."

# Texts without an image; the first is the example of the API's reference article.
FACTS = {
    "How many languages are in the world?": "About 7,000.",
    "What is the capital of France?": "Paris.",
    "How many days are in a week?": "Seven.",
    "What colour is the sky on a clear day?": "Blue.",
    "How many legs has a spider?": "Eight.",
    "What is two plus two?": "Four.",
    "Which planet do we live on?": "Earth.",
    "What do bees make?": "Honey.",
    "What is frozen water called?": "Ice.",
    "Who are you?": "A tiny test model.",
}


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its one right answer."""

    task: str
    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation about scenes, the first turn's images before its question."""

    scenes: tuple[Scene, ...]
    turns: tuple[Turn, ...]

    def chat(self, turns: Sequence[Turn]) -> list[tuple[str, str]]:
        """Give some turns as (role, content) pairs, the images before the first question."""
        pairs = [
            pair for turn in turns for pair in (("user", turn.question), ("assistant", turn.answer))
        ]
        pairs[0] = ("user", image_tags(len(self.scenes)) + pairs[0][1])
        return pairs

    def images(self) -> list[Image.Image]:
        """Draw the pictures, in order."""
        return [draw(scene) for scene in self.scenes]


def make_example(split: Split, index: int) -> Example:
    """Make example number `index` of a split; it is always the same."""
    rng = random.Random(f"{split} {index}")  # noqa: S311 - not cryptography
    make = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    while True:
        scenes, turns = make(rng)
        if all(is_held_out(scene) == (split == "held_out") for scene in scenes):
            break
    turns = list(dict.fromkeys(turns))  # the same question twice would be no question
    rng.shuffle(turns)
    asked = tuple(_as_json(turn) if rng.random() < 0.12 else turn for turn in turns[:_MAX_TURNS])
    return Example(scenes, asked)


def _as_json(turn: Turn) -> Turn:
    """Ask the same question for an answer as a JSON object."""
    answer = json.dumps({"answer": turn.answer.rstrip(".")})
    return Turn("json", turn.question + JSON_REQUEST, answer)


Made = tuple[tuple[Scene, ...], list[Turn]]


def _about_shapes(rng: random.Random) -> Made:
    scene = make_shapes(rng, rng.choice((1, 1, 2, 2, 3, 4, 5, 6)))
    turns = [*_count_turns(rng, scene), *_describe_turns(scene)]
    if len(scene.parts) == 1:
        turns += _single_turns(scene.parts[0])
    else:
        turns += _position_turns(rng, scene)
    return (scene,), turns


def _single_turns(thing: Thing) -> Iterator[Turn]:
    yield Turn("colour", "What colour is the shape?", thing.colour)
    yield Turn("colour", f"What colour is the {thing.kind}?", thing.colour)
    yield Turn("shape", "What shape is it?", thing.kind)
    yield Turn("shape", f"Which shape is {thing.colour}?", thing.kind)


def _count_turns(rng: random.Random, scene: ShapesScene) -> Iterator[Turn]:
    yield Turn("count", "How many shapes are there?", str(len(scene.parts)))
    for shape in rng.sample(SHAPES, 2):
        count = sum(thing.kind == shape for thing in scene.parts)
        yield Turn("count", f"How many {shape}s are there?", str(count))


def _describe_turns(scene: ShapesScene) -> Iterator[Turn]:
    """Describe up to three shapes from left to right."""
    things = sorted(scene.parts, key=lambda thing: thing.x)
    if len(things) <= 3 and all(one.x + 12 < other.x for one, other in itertools.pairwise(things)):
        *names, last = (f"a {thing.name}" for thing in things)
        answer = f"{', '.join(names)} and {last}." if names else f"{last}."
        yield Turn("describe", "Describe the image.", answer.replace("a o", "an o").capitalize())


def _position_turns(rng: random.Random, scene: ShapesScene) -> Iterator[Turn]:
    for _ in range(4):
        one, other = rng.sample(scene.parts, 2)
        # Clearly beside or clearly above, so that there is one right answer.
        for near, far, relation, answers in (
            (one.x, other.x, "left or right of", ("left", "right")),
            (one.y, other.y, "above or below", ("above", "below")),
        ):
            if abs(near - far) > one.radius + other.radius:
                question = f"Is the {one.name} {relation} the {other.name}?"
                yield Turn("position", question, answers[near > far])
    for thing in rng.sample(scene.parts, 2):
        if sum(other.kind == thing.kind for other in scene.parts) == 1:
            yield Turn("colour", f"What colour is the {thing.kind}?", thing.colour)
        if sum(other.colour == thing.colour for other in scene.parts) == 1:
            yield Turn("shape", f"Which shape is {thing.colour}?", thing.kind)


def _about_text(rng: random.Random) -> Made:
    if rng.random() < 0.5:
        text, task, question = str(rng.randrange(10 ** rng.randint(1, 4))), "number", "number"
    else:
        text, task, question = rng.choice(WORDS), "word", "word"
    scene: TextScene = make_text(rng, text)
    turns = [
        Turn(task, f"What {question} is printed?", text),
        Turn(task, f"Read the {question}.", text),
        Turn("colour", f"What colour is the {question}?", scene.parts[0].colour),
        Turn("describe", "Describe the image.", f"The {question} {text}."),
    ]
    return (scene,), turns


def _about_chart(rng: random.Random) -> Made:
    scene: ChartScene = make_chart(rng, rng.randint(2, 5))
    by_height = sorted(scene.parts, key=lambda bar: bar.height)
    lowest, tallest = by_height[0].colour, by_height[-1].colour
    turns = [
        Turn("tallest", "Which bar is the tallest?", f"The {tallest} bar."),
        Turn("tallest", "What colour is the tallest bar?", tallest),
        Turn("lowest", "Which bar is the lowest?", f"The {lowest} bar."),
        Turn("lowest", "What colour is the lowest bar?", lowest),
        Turn("count", "How many bars are there?", str(len(scene.parts))),
    ]
    for _ in range(3):
        one, other = rng.sample(scene.parts, 2)
        higher = max(one, other, key=lambda bar: bar.height)
        question = f"Which bar is higher, {one.colour} or {other.colour}?"
        turns.append(Turn("compare", question, f"The {higher.colour} bar."))
    colours = ", ".join(bar.colour for bar in scene.parts)
    turns.append(Turn("describe", "Describe the image.", f"Bars: {colours}."))
    return (scene,), turns


def _about_two(rng: random.Random) -> Made:
    first, second = rng.sample(range(1, 7), 2)
    scenes = (make_shapes(rng, first), make_shapes(rng, second))
    more = "The first." if first > second else "The second."
    return scenes, [Turn("two_images", "Which image has more shapes?", more)]


def _about_facts(rng: random.Random) -> Made:
    questions = rng.sample(list(FACTS), 3)
    return (), [Turn("facts", question, FACTS[question]) for question in questions]


# How often each kind of conversation comes.
_KINDS: dict[Callable[[random.Random], Made], float] = {
    _about_shapes: 0.38,
    _about_chart: 0.2,
    _about_text: 0.34,
    _about_two: 0.05,
    _about_facts: 0.03,
}
