"""The model that a package gives: images and prompts in, features, logits, tokens and text out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from typing_extensions import Self, Unpack

from phi_edge import package
from phi_edge.cache.disk import DiskCache
from phi_edge.cache.pool import PREFIX_CACHE_BYTES, RunPool
from phi_edge.engine.base import Engine, Features, Run
from phi_edge.generation.constraint import JsonGrammar
from phi_edge.generation.loop import Answer, Completion, Events, Generation, decode
from phi_edge.generation.options import GenerationOptions, OptionFields
from phi_edge.generation.sampling import Sampler
from phi_edge.image.crops import ImageCrops, auto_crops, preprocess
from phi_edge.image.files import ImageSource, to_image
from phi_edge.planning.memory import MemoryBudget
from phi_edge.planning.speed import SpeedProfile, load_profile, most_crops
from phi_edge.text.detokenizer import Detokenizer
from phi_edge.text.prompt import (
    Prompt,
    chat_text,
    encode_prompt,
    image_tags,
    plain_text,
    until_images_are_known,
)


class Model:
    """A package that is ready to run. Make one with `load_model`.

    Attributes:
        manifest: What the package says of itself.
        tokenizer: The checkpoint's tokenizer.
    """

    def __init__(
        self,
        manifest: package.Package,
        tokenizer: Tokenizer,
        engine: Engine,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        disk_cache: DiskCache | None = None,
        max_ram_bytes: int | None = None,
        *,
        provider: str = "cpu",
        num_threads: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self._budget = MemoryBudget(manifest, max_ram_bytes)
        self._runs = RunPool(engine, self._budget, prefix_cache_bytes, disk_cache)
        self._provider, self._num_threads = provider, num_threads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the graphs and their memory."""
        self._runs.close()

    @cached_property
    def speed_profile(self) -> SpeedProfile:
        """How fast the package runs on this machine.

        Raises:
            CalibrationError: This was not measured yet.
        """
        return load_profile(self.manifest, self._provider, self._num_threads)

    @property
    def calibration(self) -> SpeedProfile:
        """The speed profile, by its older name."""
        return self.speed_profile

    def fit_crops(
        self,
        images: Sequence[Image.Image],
        max_ttft_ms: float,
        *,
        text: str = "",
        num_crops: Sequence[int | None] | None = None,
    ) -> int:
        """Find the most crops an image with which the predicted first token comes in time.

        What is cached is not counted, so that the turns of a conversation get the same crops.

        Args:
            images: Those of the prompt.
            max_ttft_ms: Milliseconds to the first token.
            text: The prompt. What comes after the answer to the last image's first question is
                left out.
            num_crops: Most crops of each image; the checkpoint's default where None.

        Returns:
            At least 1, even where that takes longer.

        Raises:
            CalibrationError: The machine was not calibrated for this package.
        """
        default = self.manifest.model.num_crops
        own = [most or default for most in num_crops or [None] * len(images)]
        num_text_tokens = len(self.tokenizer.encode(until_images_are_known(text)).ids)
        return most_crops(self.speed_profile, images, own, num_text_tokens, max_ttft_ms)

    def choose_crops(
        self,
        images: Sequence[Image.Image],
        num_crops: Sequence[int | None],
        *,
        cut: Sequence[ImageCrops] = (),
        text: str = "",
        max_tokens: int | None = None,
        max_ttft_ms: float | None = None,
    ) -> list[int]:
        """Choose the most sub crops of each image; nothing is decoded for it.

        Args:
            images: Those of the prompt.
            num_crops: Most sub crops of each. Where None, the image keeps its own resolution, as
                far as `auto_crops` allows and `max_ram_mb` has room.
            cut: Images of the prompt that are cut already.
            text: The prompt.
            max_tokens: Tokens that the completion may have.
            max_ttft_ms: Lowers the numbers as `fit_crops` does.

        Raises:
            CalibrationError: As in `fit_crops`.
        """
        if not images:
            return []
        chosen = [
            auto_crops(*image.size, len(images) + len(cut)) if own is None else own
            for image, own in zip(images, num_crops, strict=True)
        ]
        if self._budget.max_ram_bytes is not None:
            num_tokens = len(self.tokenizer.encode(text).ids) + sum(each.num_tokens for each in cut)
            sizes, are_free = [image.size for image in images], [own is None for own in num_crops]
            chosen = self._budget.fit_crops(sizes, chosen, are_free, num_tokens, max_tokens)
        if max_ttft_ms is not None:
            most = self.fit_crops(images, max_ttft_ms, text=text, num_crops=chosen)
            chosen = [min(most, own) for own in chosen]
        return chosen

    def preprocess(self, image: Image.Image, num_crops: int | None = None) -> ImageCrops:
        """Cut an image into crops of normalised pixels.

        Args:
            image: A Pillow image of any mode.
            num_crops: Most sub crops to use; the checkpoint's default when None. More crops
                show more detail and take more tokens and time.

        Raises:
            ImageError: The image cannot be decoded or laid out.
        """
        model = self.manifest.model
        return preprocess(
            image,
            model.num_crops if num_crops is None else num_crops,
            model.image_mean,
            model.image_std,
        )

    def encode_image(self, crops: ImageCrops, cancel: threading.Event | None = None) -> Features:
        """Encode an image: float32 [num_tokens, hidden_size], which cannot be written to.

        Those of the images that came last are kept, and given again for the same pixels.

        Args:
            crops: From `preprocess`.
            cancel: A `CancelToken`; setting it, from another thread, stops the work.

        Raises:
            GenerationCancelled: `cancel` was set.
        """
        return self._runs.encode_image(crops, cancel)

    def encode_prompt(
        self,
        text: str,
        images: Sequence[ImageSource | ImageCrops] = (),
        num_crops: int | None = None,
        max_ttft_ms: float | None = None,
    ) -> Prompt:
        """Tokenize a prompt in the chat template.

        Args:
            text: As `phi_edge.chat_text` makes it, with a tag `<|image_k|>` an image.
            images: The images that the tags name, in the order of their numbers. Each is a path,
                the bytes of an image file, a Pillow image, an array uint8 [height, width] or
                [height, width, 3 or 4], or what `preprocess` gave.
            num_crops: As in `preprocess`, for images that are not cut yet.
            max_ttft_ms: Lowers `num_crops` until the first token is predicted to come within so
                many milliseconds; see `fit_crops`.

        Raises:
            CalibrationError: As in `fit_crops`.
            PromptError: Tags and images do not match.
            ImageError: An image cannot be decoded or laid out.
        """
        opened = _opened(images)
        uncut = [image for image in opened if not isinstance(image, ImageCrops)]
        if max_ttft_ms is not None and uncut:
            limits = [num_crops] * len(uncut)
            num_crops = self.fit_crops(uncut, max_ttft_ms, text=text, num_crops=limits)
        crops = [
            image if isinstance(image, ImageCrops) else self.preprocess(image, num_crops)
            for image in opened
        ]
        return encode_prompt(self.tokenizer, text, crops)

    def check_memory(self, prompt: Prompt, max_tokens: int | None = None) -> None:
        """Refuse a prompt that would take too much memory, before any work is done.

        Args:
            prompt: From `encode_prompt`.
            max_tokens: Tokens that the completion may have; when None, it ends where memory does.

        Raises:
            MemoryLimitError: With `max_ram_mb`, the predicted peak is above it.
        """
        self._budget.check(prompt, max_tokens)

    def start(
        self,
        prompt: Prompt,
        cancel: threading.Event | None = None,
        max_tokens: int | None = None,
        batch_size: int = 1,
    ) -> Run:
        """Prefill a prompt, or what earlier ones that began alike have not left of it.

        The run is yours. In a `with` block, it is kept for later prompts at the end of the block:

            with model.start(prompt) as run:
                token_id = int(run.logits.argmax())
                logits = run.append(token_id)

        Args:
            prompt: From `encode_prompt`.
            cancel: Setting it, from another thread, stops the work; see `CancelToken`.
            max_tokens: Tokens that the run may grow by; see `check_memory`.
            batch_size: Sequences that it may be forked into.

        Raises:
            MemoryLimitError: See `check_memory`.
            PromptError: An image is named more than once.
            ContextLengthError: The prompt is longer than the context.
            GenerationCancelled: `cancel` was set.
        """
        self.check_memory(prompt, max_tokens)
        return self._runs.start(prompt, cancel, max_tokens, batch_size)

    def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        cancel: threading.Event | None = None,
        **fields: Unpack[OptionFields],
    ) -> Generation:
        """Generate completions of a prompt, token by token.

        Args:
            prompt: From `encode_prompt`.
            options: How.
            cancel: Setting it, from another thread, stops the work; see `CancelToken`.
            fields: Fields of `GenerationOptions`, in place of those of `options`.

        Returns:
            Events, made as they are asked for; the last of each completion has a finish reason.

        Raises:
            ValueError: An option is out of its range, or the schema cannot be used.
            TypeError: There is no such option.
            MemoryLimitError: See `check_memory`.
            PromptError, ContextLengthError, GenerationCancelled: As in `start`, when the first
                event is asked for.
        """
        options = (options or GenerationOptions()).replace(**fields)
        self.check_memory(prompt, options.max_tokens)
        completions = self._begin(prompt, options)
        events = self._decode(prompt, completions, options, cancel)
        return Generation(prompt.num_tokens, completions, events)

    def _begin(self, prompt: Prompt, options: GenerationOptions) -> list[Completion]:
        """Completions that have no tokens yet."""
        model = self.manifest.model
        if any(not 0 <= token_id < model.vocab_size for token_id in options.logit_bias or ()):
            raise ValueError(f"logit_bias: token ids are 0 to {model.vocab_size - 1}")
        constraint = options.constraint
        if options.json_schema is not None:
            constraint = self._grammar.constrain(options.json_schema)
        # The last token is chosen, and never appended.
        max_tokens = self._budget.max_length(prompt, None) - prompt.num_tokens + 1
        if options.max_tokens is not None:
            max_tokens = min(max_tokens, options.max_tokens)
        return [
            Completion(
                index,
                Sampler(
                    options,
                    index=index,
                    prompt_ids=prompt.input_ids,
                    constraint=None if constraint is None else constraint.copy(),
                ),
                Detokenizer(self.tokenizer, options.stop_strings),
                model.eos_token_ids,
                max_tokens,
                options.num_logprobs,
            )
            for index in range(options.n)
        ]

    @cached_property
    def _grammar(self) -> JsonGrammar:
        model = self.manifest.model
        return JsonGrammar(self.tokenizer, model.vocab_size, model.eos_token_ids)

    def _decode(
        self,
        prompt: Prompt,
        completions: Sequence[Completion],
        options: GenerationOptions,
        cancel: threading.Event | None,
    ) -> Events:
        batch_size = self._budget.batch_size(prompt, options.max_tokens, options.n)
        with self.start(prompt, cancel, options.max_tokens, batch_size) as run:
            yield from decode(run, completions, batch_size, options.draft_tokens, cancel)

    def stream(
        self,
        text: str,
        images: Sequence[ImageSource | ImageCrops] = (),
        options: GenerationOptions | None = None,
        *,
        num_crops: int | None = None,
        max_ttft_ms: float | None = None,
        cancel: threading.Event | None = None,
        **fields: Unpack[OptionFields],
    ) -> Generation:
        """Ask a question about images, or without any, and get the answer token by token.

        Special tokens in the question are ordinary text. The images come before it, and are as in
        `encode_prompt`; `choose_crops` says how many crops they get. All else is as in `generate`.

        Raises:
            As in `encode_prompt` and `generate`.
        """
        options = (options or GenerationOptions()).replace(**fields)
        opened = _opened(images)
        question = image_tags(len(opened)) + plain_text(self.tokenizer, text)
        turns = chat_text([("user", question)])
        uncut = [image for image in opened if not isinstance(image, ImageCrops)]
        most = iter(
            self.choose_crops(
                uncut,
                [num_crops] * len(uncut),
                cut=[image for image in opened if isinstance(image, ImageCrops)],
                text=turns,
                max_tokens=options.max_tokens,
                max_ttft_ms=max_ttft_ms,
            )
        )
        crops = [
            image if isinstance(image, ImageCrops) else self.preprocess(image, next(most))
            for image in opened
        ]
        return self.generate(self.encode_prompt(turns, crops), options, cancel=cancel)

    def ask(
        self,
        text: str,
        images: Sequence[ImageSource | ImageCrops] = (),
        options: GenerationOptions | None = None,
        *,
        num_crops: int | None = None,
        max_ttft_ms: float | None = None,
        cancel: threading.Event | None = None,
        **fields: Unpack[OptionFields],
    ) -> Answer:
        """Ask a question about images, or without any; see `stream`.

            print(model.ask("Which bar is the tallest?", images=["chart.png"]))

        Raises:
            ValueError: More than one answer is asked for; `stream` gives several.
            As in `stream`.
        """
        return self.stream(
            text,
            images,
            options,
            num_crops=num_crops,
            max_ttft_ms=max_ttft_ms,
            cancel=cancel,
            **fields,
        ).answer()


def _opened(images: Sequence[ImageSource | ImageCrops]) -> list[Image.Image | ImageCrops]:
    """Images, opened where they are not cut yet; one that is not in a list is refused."""
    # It may be a sequence of something else.
    if isinstance(images, str | bytes | Path | Image.Image | np.ndarray):
        raise TypeError("images is a list, of one image too: images=[image]")
    return [each if isinstance(each, ImageCrops) else to_image(each) for each in images]
