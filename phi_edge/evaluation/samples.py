"""Samples: questions with images and answers, to calibrate an export with and to judge it by.

A folder of samples holds any of

- `samples.jsonl`: one JSON object a line, with `question`, and maybe `answer` and `images`, a list
  of file names;
- image files that no line names: each is asked to be described;
- `.txt` files: each is a question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError
from tokenizers import Tokenizer

from phi_edge.errors import SamplesError
from phi_edge.image.crops import ImageCrops
from phi_edge.text.prompt import Prompt, chat_text, encode_prompt, image_tags

ANSWER_END = "<|end|>"
LINES_FILE = "samples.jsonl"
_BUNDLED = Path(__file__).parent / "sample_set"
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_DESCRIBE = "Describe the image."


class Sample(NamedTuple):
    """A question and its answer, which may be empty.

    Attributes:
        question: The user's message.
        answer: The assistant's.
        images: Files that the message begins with.
    """

    question: str
    answer: str = ""
    images: tuple[Path, ...] = ()

    def encode(
        self, tokenizer: Tokenizer, crops: Sequence[ImageCrops]
    ) -> tuple[Prompt, npt.NDArray[np.int64]]:
        """Encode the prompt, and the answer with its end, as the model meets them."""
        text = chat_text([("user", image_tags(len(crops)) + self.question)])
        answer = f"{self.answer}{ANSWER_END}" if self.answer else ""
        ids = tokenizer.encode(answer, add_special_tokens=False).ids
        return encode_prompt(tokenizer, text, crops), np.array(ids, np.int64)


def bundled_samples(part: Literal["calibration", "held_out"]) -> list[Sample]:
    """Read the samples that come with the package; no sample is in both parts."""
    return read_samples(_BUNDLED / part)


def read_samples(folder: Path) -> list[Sample]:
    """Read a folder of samples.

    Raises:
        SamplesError: The folder is missing or has none, or a line of `samples.jsonl` is no sample.
    """
    if not folder.is_dir():
        raise SamplesError(f"there is no folder of samples at {folder}")
    samples = list(_read_lines(folder))
    named = {image for sample in samples for image in sample.images}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _IMAGE_SUFFIXES and path not in named:
            samples.append(Sample(_DESCRIBE, images=(path,)))
        elif path.suffix.lower() == ".txt":
            samples.append(Sample(path.read_text(encoding="utf-8").strip()))
    if not samples:
        raise SamplesError(f"{folder} has no {LINES_FILE}, no images and no .txt files")
    return samples


class _Line(BaseModel, extra="forbid"):
    question: str
    answer: str = ""
    images: list[str] = []


def _read_lines(folder: Path) -> Iterator[Sample]:
    file = folder / LINES_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            fields = _Line.model_validate_json(line)
        except ValidationError as error:
            raise SamplesError(f"{file}, line {number} is no sample: {error}") from None
        images = tuple(folder / name for name in fields.images)
        missing = [image.name for image in images if not image.is_file()]
        if missing:
            raise SamplesError(f"{file}, line {number}: there is no image {', '.join(missing)}")
        yield Sample(fields.question, fields.answer, images)
