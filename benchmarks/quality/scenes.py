"""Generated images: shapes, printed text, bar charts.

Everything is drawn with Pillow from a random generator that is given, so a seed gives the same
pictures everywhere. Images are square, 336 pixels: one crop.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import string
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

SIZE = 336
PATCH = 14

Colour = tuple[int, int, int]
Fill = Colour | int

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
KINDS = (*SHAPES, "bar", *string.digits, *string.ascii_uppercase)
_AXIS = (60, 60, 60)
WORDS = [
    *("APPLE", "BIRD", "BOAT", "BOOK", "CAKE", "CHAIR", "CLOUD", "COLD", "DOG", "DOOR", "FIRE"),
    *("FISH", "GOLD", "HAND", "HOUSE", "ICE", "KEY", "LAMP", "LEAF", "MILK", "MOON", "PARK"),
    *("RAIN", "RIVER", "ROAD", "SALT", "SHIP", "SNOW", "SUN", "TREE", "WARM", "WIND", "WOLF"),
]

# A layout is where things stand, coarsely. One in ten is kept from training.
_LAYOUT_CELL = 24
_NUM_LAYOUT_GROUPS = 10


class Part(Protocol):
    """A coloured piece of a scene: a shape, a bar or a character."""

    @property
    def colour(self) -> str:
        """Its colour's name."""

    @property
    def kind(self) -> str:
        """What it is, one of `KINDS`."""

    @property
    def anchor(self) -> tuple[int, int]:
        """The pixel that says where it is."""

    def draw(self, canvas: ImageDraw.ImageDraw, fill: Fill) -> None:
        """Draw it."""

    def cover(self, canvas: ImageDraw.ImageDraw, fill: int) -> None:
        """Fill the area that belongs to it."""


class Scene(Protocol):
    """Something to ask questions about."""

    @property
    def parts(self) -> Sequence[Part]:
        """What stands in it."""

    @property
    def background(self) -> Colour:
        """What it stands on."""

    @property
    def layout(self) -> str:
        """Where things stand, without what they are."""


def draw(scene: Scene) -> Image.Image:
    """The picture, RGB, 336 x 336."""
    image = Image.new("RGB", (SIZE, SIZE), scene.background)
    canvas = ImageDraw.Draw(image)
    for part in scene.parts:
        part.draw(canvas, COLOURS[part.colour])
    return image


# What is said of each patch, and how many values it can have; 0 is for nothing.
PATCH_LABELS = {
    "colour": 1 + len(COLOURS),
    "kind": 1 + len(KINDS),
    "order": 7,  # the part's place from left to right
    "rank": 7,  # its place from top to bottom
    "count": 7,  # how many parts the scene has
    "anchor": 2,  # whether the part's anchor is here
}


def label_patches(scene: Scene) -> npt.NDArray[np.int64]:
    """What each patch of the picture shows, by the part that covers its middle.

    Returns:
        int64 [labels, 576], a row for each of `PATCH_LABELS`.
    """
    parts = scene.parts
    numbers = Image.new("L", (SIZE, SIZE))
    canvas = ImageDraw.Draw(numbers)
    for number, part in enumerate(parts, 1):
        part.cover(canvas, number)
    shown = np.asarray(numbers)[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]
    by_x = sorted(part.anchor for part in parts)
    by_y = sorted(part.anchor[::-1] for part in parts)
    rows = [
        (
            1 + list(COLOURS).index(part.colour),
            1 + KINDS.index(part.kind),
            1 + by_x.index(part.anchor),
            1 + by_y.index(part.anchor[::-1]),
            len(parts),
            0,
        )
        for part in parts
    ]
    labels: npt.NDArray[np.int64] = np.array([(0,) * len(PATCH_LABELS), *rows]).T[:, shown]
    for part in parts:
        x, y = (min(max(at // PATCH, 0), SIZE // PATCH - 1) for at in part.anchor)
        labels[-1, y, x] = 1
    return labels.reshape(len(PATCH_LABELS), -1)


def is_held_out(scene: Scene) -> bool:
    """Whether a scene's layout belongs to the evaluation."""
    return zlib.crc32(scene.layout.encode()) % _NUM_LAYOUT_GROUPS == 0


@dataclasses.dataclass(frozen=True)
class Thing:
    """A coloured shape; its centre and half its size in pixels."""

    colour: str
    kind: str
    x: int
    y: int
    radius: int

    @property
    def name(self) -> str:
        """For example "red circle"."""
        return f"{self.colour} {self.kind}"

    @property
    def anchor(self) -> tuple[int, int]:
        """Its centre."""
        return (self.x, self.y)

    def draw(self, canvas: ImageDraw.ImageDraw, fill: Fill) -> None:
        """Draw it."""
        x, y, r = self.x, self.y, self.radius
        if self.kind == "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), fill)
        elif self.kind == "square":
            side = round(r * 0.88)
            canvas.rectangle((x - side, y - side, x + side, y + side), fill)
        else:
            num_points, inner = (3, 1.0) if self.kind == "triangle" else (5, 0.42)
            canvas.polygon(_star(x, y, r, num_points, inner), fill)

    cover = draw


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
class Bar:
    """A bar of a chart; left, bottom, width and height in pixels."""

    colour: str
    x: int
    bottom: int
    width: int
    height: int
    kind: str = "bar"

    @property
    def anchor(self) -> tuple[int, int]:
        """The middle of its top."""
        return (self.x + self.width // 2, self.bottom - self.height)

    def draw(self, canvas: ImageDraw.ImageDraw, fill: Fill) -> None:
        """Draw it."""
        self.cover(canvas, fill)
        axis = (self.x - self.width // 4, self.bottom, self.x + self.width * 5 // 4, self.bottom)
        canvas.line(axis, _AXIS, 2)

    def cover(self, canvas: ImageDraw.ImageDraw, fill: Fill) -> None:
        """Fill the area that belongs to it."""
        top = self.bottom - self.height
        canvas.rectangle((self.x, top, self.x + self.width, self.bottom), fill)


@dataclasses.dataclass(frozen=True)
class Glyph:
    """A printed character; the left end of its base line, in pixels."""

    colour: str
    kind: str
    x: int
    y: int
    font_size: int

    @property
    def width(self) -> int:
        """How far the next character is, in pixels."""
        return round(_font(self.font_size).getlength(self.kind))

    @property
    def anchor(self) -> tuple[int, int]:
        """Its middle."""
        return (self.x + self.width // 2, self.y - self.font_size // 3)

    def draw(self, canvas: ImageDraw.ImageDraw, fill: Fill) -> None:
        """Draw it."""
        canvas.text((self.x, self.y), self.kind, fill, _font(self.font_size), anchor="ls")

    def cover(self, canvas: ImageDraw.ImageDraw, fill: int) -> None:
        """Fill the area that belongs to it."""
        top = self.y - round(0.75 * self.font_size)
        canvas.rectangle((self.x, top, self.x + self.width - 1, self.y), fill)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@dataclasses.dataclass(frozen=True)
class ShapesScene:
    """One to six shapes that do not touch; no two have the same colour and shape."""

    parts: tuple[Thing, ...]
    background: Colour

    @property
    def layout(self) -> str:
        """Where things stand, without what they are."""
        cells = sorted((thing.x // _LAYOUT_CELL, thing.y // _LAYOUT_CELL) for thing in self.parts)
        return f"shapes {cells}"


@dataclasses.dataclass(frozen=True)
class TextScene:
    """A word or a number, printed somewhere."""

    parts: tuple[Glyph, ...]
    background: Colour

    @property
    def text(self) -> str:
        """What is printed."""
        return "".join(glyph.kind for glyph in self.parts)

    @property
    def layout(self) -> str:
        """Where things stand, without what they are."""
        first = self.parts[0]
        return f"text {first.x // _LAYOUT_CELL} {first.y // _LAYOUT_CELL} {first.font_size // 8}"


@dataclasses.dataclass(frozen=True)
class ChartScene:
    """A bar chart."""

    parts: tuple[Bar, ...]
    background: Colour

    @property
    def layout(self) -> str:
        """Where things stand, without what they are."""
        first = self.parts[0]
        heights = [bar.height // _LAYOUT_CELL for bar in self.parts]
        return f"chart {first.x // 12} {first.bottom // 12} {heights}"


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
    largest = min(96, int(0.9 * SIZE * 100 / _font(100).getlength(text)))
    font_size = rng.randint(min(56, largest), largest)
    colour = rng.choice([colour for colour in COLOURS if colour != "yellow"])
    width = sum(Glyph(colour, character, 0, 0, font_size).width for character in text)
    x = rng.randint(6, SIZE - width - 6)
    y = rng.randint(round(0.85 * font_size), SIZE - round(0.3 * font_size))
    glyphs: list[Glyph] = []
    for character in text:
        glyphs.append(Glyph(colour, character, x, y, font_size))
        x += glyphs[-1].width
    return TextScene(tuple(glyphs), _make_background(rng))


def make_chart(rng: random.Random, num_bars: int) -> ChartScene:
    """Bars whose heights differ visibly."""
    levels = rng.sample(range(1, 12), num_bars)
    unit = rng.randint(18, 24)
    width = rng.randint(26, 36)
    pitch = width * 3 // 2
    left = rng.randint(16, SIZE - num_bars * pitch - 8)
    bottom = rng.randint(290, 322)
    colours = rng.sample(list(COLOURS), num_bars)
    bars = (
        Bar(colour, left + number * pitch, bottom, width, level * unit)
        for number, (colour, level) in enumerate(zip(colours, levels, strict=True))
    )
    return ChartScene(tuple(bars), _make_background(rng))


def _make_background(rng: random.Random) -> tuple[int, int, int]:
    """White or a pale tint."""
    red, green, blue = (rng.randint(228, 255) for _ in range(3))
    return rng.choice([(255, 255, 255), (red, green, blue)])
