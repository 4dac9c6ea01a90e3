"""Prompts: text with image tags -> token ids, equal to the reference processor token for token.

Source: `Phi3VProcessor`, which Microsoft publishes with Phi-3-vision and Phi-3.5-vision. It
splits the text at the image tags and tokenizes every piece alone, so that each piece, an empty
one too, begins with its own BOS token.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from phi_edge.errors import PromptError
from phi_edge.image.crops import ImageCrops

logger = logging.getLogger(__name__)

_IMAGE_TAG = re.compile(r"<\|image_(\d{1,9})\|>")


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """What a sequence starts with.

    Attributes:
        input_ids: int64 [num_tokens]. Slots of image k are -k.
        images: The images; their features fill the slots in sequence order, the first image's
            first, whatever the ids are.
    """

    input_ids: npt.NDArray[np.int64]
    images: tuple[ImageCrops, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt, image slots included."""
        return len(self.input_ids)

    @property
    def image_keys(self) -> list[tuple[bytes, int]]:
        """What tells each image from others, and its number of tokens."""
        return [(crops.digest, crops.num_tokens) for crops in self.images]

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each padded image in pixels."""
        return [crops.image_size for crops in self.images]


def encode_prompt(tokenizer: Tokenizer, text: str, images: Sequence[ImageCrops]) -> Prompt:
    """Tokenize a prompt and lay out the slots of its images.

    Args:
        tokenizer: The checkpoint's tokenizer.
        text: Prompt in the chat template, with `<|image_1|>`, `<|image_2|>`, ... for the images.
            Without images, tags are plain text.
        images: Image k is `images[k - 1]`.

    Raises:
        PromptError: The tags do not name exactly the images 1 to n.
    """
    if not images:
        return Prompt(_tokenize(tokenizer, text))
    # The split gives text and image numbers by turns.
    pieces = _IMAGE_TAG.split(text)
    numbers = [int(number) for number in pieces[1::2]]
    if set(numbers) != set(range(1, len(images) + 1)):
        raise PromptError(
            f"the prompt has {_list_tags(numbers)}, and {len(images)} image(s) were given: "
            f"it needs {_list_tags(range(1, len(images) + 1))}"
        )
    if list(dict.fromkeys(numbers)) != sorted(set(numbers)):
        logger.warning(
            "image tags are not in the order 1, 2, ...; features fill the slots in the order of "
            "the images all the same, as in the reference"
        )
    parts = [_tokenize(tokenizer, pieces[0])]
    for number, piece in zip(numbers, pieces[2::2], strict=True):
        parts += [
            np.full(images[number - 1].num_tokens, -number, np.int64),
            _tokenize(tokenizer, piece),
        ]
    return Prompt(np.concatenate(parts), tuple(images))


def until_images_are_known(text: str) -> str:
    """Cut a prompt before the first answer after its last image, if there is one."""
    *_, last = [0, *(match.end() for match in _IMAGE_TAG.finditer(text))]
    end = text.find("<|assistant|>", last)
    return text if end < 0 else text[:end]


def _tokenize(tokenizer: Tokenizer, text: str) -> npt.NDArray[np.int64]:
    return np.array(tokenizer.encode(text).ids, np.int64)


def _list_tags(numbers: Iterable[int]) -> str:
    return ", ".join(f"<|image_{number}|>" for number in numbers) or "no image tags"


def plain_text(tokenizer: Tokenizer, text: str) -> str:
    """Make text in which nothing is a special token or an image tag any more.

    A space after the first character makes ordinary text of them: `<|end|>` becomes `< |end|>`.
    Texts that have none stay as they are, and so do their tokens.

    Args:
        tokenizer: Knows the special tokens.
        text: From someone who must not end a turn, begin another, or place an image.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    found = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    pattern = rf"{_IMAGE_TAG.pattern}|{found}" if found else _IMAGE_TAG.pattern
    return re.sub(pattern, lambda match: f"{match[0][0]} {match[0][1:]}", text)


def longest_token(tokenizer: Tokenizer) -> int:
    """Find the most characters that a token can stand for.

    A text's characters, divided by it, are fewer than its tokens, which takes no tokenizing. White
    space at its ends must not be counted: special tokens beside it take it away.
    """
    # The tokenizer puts one character in the place of another, and spells in bytes what is in no
    # token. One that does not spell makes a single token of any number of such characters.
    spells = getattr(tokenizer.model, "byte_fallback", False)
    return max(map(len, tokenizer.get_vocab())) if spells else sys.maxsize


def image_tags(num_images: int) -> str:
    """Write the tags of the images 1 to n, each on a line, before the first question."""
    return "".join(f"<|image_{number}|>\n" for number in range(1, num_images + 1))


def chat_text(turns: Iterable[tuple[str, str]]) -> str:
    """Write a conversation in the model's chat template, up to the assistant's next turn.

    Args:
        turns: (role, content) pairs; roles are "system", "user" and "assistant".
    """
    text = "".join(f"<|{role}|>\n{content}<|end|>\n" for role, content in turns)
    return f"{text}<|assistant|>\n"
