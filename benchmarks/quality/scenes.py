"""Generated images: shapes, printed text, bar charts.

Everything is drawn with Pillow from a random generator that is given, so a seed gives the same
pictures everywhere. Images are square, 336 pixels: one crop.
"""

from __future__ import annotations

import dataclasses
import math
import random
import zlib
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont

SIZE = 336

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "orange": (245, 140, 30),
    "purple": (140, 60, 170),
    "black": (20, 20, 20),
    "pink": (245, 150, 190),
}
SHAPES = ("circle", "square", "triangle", "star")
WORDS = [
    *("apple", "bird", "boat", "book", "cake", "chair", "cloud", "cold", "dog", "door", "fire"),
    *("fish", "gold", "hand", "house", "ice", "key", "lamp", "leaf", "milk", "moon", "park"),
    *("rain", "river", "road", "salt", "ship", "snow", "sun", "tree", "warm", "wind", "wolf"),
]

# A layout is where things stand, coarsely. One in ten is kept from training.
_LAYOUT_CELL = 24
_NUM_LAYOUT_GROUPS = 10


class Scene(Protocol):
    """Something to ask questions about."""

    def draw(self) -> Image.Image:
        """The picture, RGB, 336 x 336."""

    @property
    def layout(self) -> str:
        """Where things stand, without what they are."""


def is_held_out(scene: Scene) -> bool:
    """Whether a scene's layout belongs to the evaluation."""
    return zlib.crc32(scene.layout.encode()) % _NUM_LAYOUT_GROUPS == 0


@dataclasses.dataclass(frozen=True)
class Thing:
    """A coloured shape; its centre and half its size in pixels."""

    colour: str
    shape: str
    x: int
    y: int
    radius: int

    @property
    def name(self) -> str:
        """For example "red circle"."""
        return f"{self.colour} {self.shape}"

    def draw(self, canvas: ImageDraw.ImageDraw) -> None:
        """Draw it."""
        x, y, r, fill = self.x, self.y, self.radius, COLOURS[self.colour]
        if self.shape == "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), fill)
        elif self.shape == "square":
            side = round(r * 0.88)
            canvas.rectangle((x - side, y - side, x + side, y + side), fill)
        else:
            num_points, inner = (3, 1.0) if self.shape == "triangle" else (5, 0.42)
            canvas.polygon(_star(x, y, r, num_points, inner), fill)


def _star(x: int, y: int, radius: int, num_points: int, inner: float) -> list[tuple[float, float]]:
    """Corners of a star, or of a polygon when the inner corners are left out (`inner` is 1)."""
    step = 1 if inner < 1 else 2
    return [
        (
            x + radius * (inner if i % 2 else 1) * math.sin(math.pi * i / num_points),
            y - radius * (inner if i % 2 else 1) * math.cos(math.pi * i / num_points),
        )
        for i in range(0, 2 * num_points, step)
    ]


@dataclasses.dataclass(frozen=True)
class ShapesScene:
    """One to six shapes that do not touch; no two have the same colour and shape."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]

    def draw(self) -> Image.Image:
        """See `Scene.draw`."""
        image = Image.new("RGB", (SIZE, SIZE), self.background)
        canvas = ImageDraw.Draw(image)
        for thing in self.things:
            thing.draw(canvas)
        return image

    @property
    def layout(self) -> str:
        """See `Scene.layout`."""
        cells = sorted((thing.x // _LAYOUT_CELL, thing.y // _LAYOUT_CELL) for thing in self.things)
        return f"shapes {cells}"


@dataclasses.dataclass(frozen=True)
class TextScene:
    """A word or a number, printed somewhere."""

    text: str
    x: int
    y: int
    font_size: int
    colour: str
    background: tuple[int, int, int]

    def draw(self) -> Image.Image:
        """See `Scene.draw`."""
        image = Image.new("RGB", (SIZE, SIZE), self.background)
        font = ImageFont.load_default(self.font_size)
        canvas = ImageDraw.Draw(image)
        canvas.text((self.x, self.y), self.text, COLOURS[self.colour], font, anchor="mm")
        return image

    @property
    def layout(self) -> str:
        """See `Scene.layout`."""
        return f"text {self.x // _LAYOUT_CELL} {self.y // _LAYOUT_CELL} {self.font_size // 8}"


@dataclasses.dataclass(frozen=True)
class ChartScene:
    """A bar chart: a colour and a height in pixels for each bar, left to right."""

    bars: tuple[tuple[str, int], ...]
    left: int
    bottom: int
    bar_width: int
    background: tuple[int, int, int]

    def draw(self) -> Image.Image:
        """See `Scene.draw`."""
        image = Image.new("RGB", (SIZE, SIZE), self.background)
        canvas = ImageDraw.Draw(image)
        pitch = self.bar_width * 3 // 2
        for number, (colour, height) in enumerate(self.bars):
            x = self.left + number * pitch
            box = (x, self.bottom - height, x + self.bar_width, self.bottom)
            canvas.rectangle(box, COLOURS[colour])
        right = self.left + len(self.bars) * pitch
        canvas.line((self.left - 8, self.bottom + 1, right, self.bottom + 1), (60, 60, 60), 2)
        return image

    @property
    def layout(self) -> str:
        """See `Scene.layout`."""
        heights = [height // _LAYOUT_CELL for _, height in self.bars]
        return f"chart {self.left // 12} {self.bottom // 12} {heights}"


def make_shapes(rng: random.Random, num_things: int) -> ShapesScene:
    """Shapes at random places; a place that would touch another is drawn again."""
    kinds = rng.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], num_things)
    largest = 70 if num_things <= 2 else 48
    things: list[Thing] = []
    for colour, shape in kinds:
        while True:
            radius = rng.randint(24, largest)
            x, y = (rng.randint(radius + 4, SIZE - radius - 4) for _ in "xy")
            gaps = (math.dist((x, y), (other.x, other.y)) - other.radius for other in things)
            if all(gap > radius + 6 for gap in gaps):
                break
        things.append(Thing(colour, shape, x, y, radius))
    return ShapesScene(tuple(things), _make_background(rng))


def make_text(rng: random.Random, text: str) -> TextScene:
    """A text at a random place and in a size that fits."""
    largest = min(120, int(SIZE * 0.85 / (0.62 * len(text))))
    font_size = rng.randint(min(44, largest), largest)
    half_width, half_height = int(0.31 * font_size * len(text)) + 6, font_size // 2 + 6
    return TextScene(
        text,
        rng.randint(half_width, SIZE - half_width),
        rng.randint(half_height, SIZE - half_height),
        font_size,
        rng.choice([colour for colour in COLOURS if colour != "yellow"]),
        _make_background(rng),
    )


def make_chart(rng: random.Random, num_bars: int) -> ChartScene:
    """Bars whose heights differ visibly."""
    levels = rng.sample(range(1, 12), num_bars)
    unit = rng.randint(18, 24)
    bar_width = rng.randint(26, 36)
    width = num_bars * bar_width * 3 // 2
    colours = rng.sample(list(COLOURS), num_bars)
    return ChartScene(
        tuple((colour, level * unit) for colour, level in zip(colours, levels, strict=True)),
        rng.randint(16, SIZE - width - 8),
        rng.randint(290, 322),
        bar_width,
        _make_background(rng),
    )


def _make_background(rng: random.Random) -> tuple[int, int, int]:
    """White or a pale tint."""
    red, green, blue = (rng.randint(228, 255) for _ in range(3))
    return rng.choice([(255, 255, 255), (red, green, blue)])
