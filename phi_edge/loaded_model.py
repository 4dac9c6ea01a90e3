"""The model that a package gives: images and prompts in, features, logits, tokens and text out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from phi_edge import image as image_processing
from phi_edge import package
from phi_edge import prompt as prompts
from phi_edge.budget import MemoryBudget
from phi_edge.caches import FeatureCache, PrefixCache
from phi_edge.disk_cache import DiskCache
from phi_edge.drafting import DRAFT_TOKENS
from phi_edge.engine import Engine, Features, Run, check_cancelled
from phi_edge.errors import EngineError
from phi_edge.generation import GenerationEvent, Limits, generate_events
from phi_edge.image import ImageCrops
from phi_edge.machine import Calibration, load_calibration, most_crops
from phi_edge.prompt import Prompt
from phi_edge.sampling import Sampler
from phi_edge.text import Detokenizer

if TYPE_CHECKING:
    from typing_extensions import Self


logger = logging.getLogger(__name__)

# Sixteen crops give 29 MB of features.
_FEATURE_CACHE_BYTES = 256 * 2**20
# In float32, a conversation takes 0.8 MB a token.
PREFIX_CACHE_BYTES = 2 * 2**30


class Model:
    """A package that is ready to run. Make one with `load_model`.

    Attributes:
        manifest: What the package says of itself.
        tokenizer: The checkpoint's tokenizer.
    """

    def __init__(
        self,
        manifest: package.Manifest,
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
        self._engine: Engine | None = engine
        self._features = FeatureCache(_FEATURE_CACHE_BYTES)
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._disk = disk_cache
        self._budget = MemoryBudget(manifest, max_ram_bytes)
        self._provider, self._num_threads = provider, num_threads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the graphs and their memory."""
        self._features.clear()
        self._prefixes.clear()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError("the model is closed: load it again")
        return self._engine

    @cached_property
    def calibration(self) -> Calibration:
        """How fast the package runs on this machine.

        Raises:
            CalibrationError: This was not measured yet.
        """
        return load_calibration(self.manifest, self._provider, self._num_threads)

    def fit_crops(
        self,
        images: Sequence[Image.Image],
        max_ttft_ms: float,
        *,
        text: str = "",
        num_crops: Sequence[int | None] | None = None,
    ) -> int:
        """The most crops an image with which the predicted first token comes in time.

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
        num_text_tokens = len(self.tokenizer.encode(prompts.until_images_are_known(text)).ids)
        return most_crops(self.calibration, images, own, num_text_tokens, max_ttft_ms)

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
        return image_processing.preprocess(
            image,
            model.num_crops if num_crops is None else num_crops,
            model.image_mean,
            model.image_std,
        )

    def encode_image(self, crops: ImageCrops, cancel: threading.Event | None = None) -> Features:
        """Image features, float32 [num_tokens, hidden_size], which cannot be written to.

        Those of the images that came last are kept, and given again for the same pixels.

        Args:
            crops: From `preprocess`.
            cancel: A `CancelToken`; setting it, from another thread, stops the work.

        Raises:
            GenerationCancelled: `cancel` was set.
        """
        features = self._features.get(crops)
        if features is not None:
            return features
        if self._disk is not None:
            features = self._disk.load_features(crops)
        if features is None:
            features = self._open_engine().encode_image(crops, cancel)
            if self._disk is not None:
                self._disk.save_features(crops, features)
        features.setflags(write=False)
        self._features.put(crops, features)
        return features

    def encode_prompt(
        self,
        text: str,
        images: Sequence[Image.Image | ImageCrops] = (),
        num_crops: int | None = None,
        max_ttft_ms: float | None = None,
    ) -> Prompt:
        """Tokenize a prompt in the chat template.

        Args:
            text: As `phi_edge.prompt.chat_text` makes it, with a tag `<|image_k|>` an image.
            images: The images that the tags name, in the order of their numbers.
            num_crops: As in `preprocess`, for images that are not cut yet.
            max_ttft_ms: Lowers `num_crops` until the first token is predicted to come within so
                many milliseconds; see `fit_crops`.

        Raises:
            CalibrationError: As in `fit_crops`.
            PromptError: Tags and images do not match.
            ImageError: An image cannot be decoded or laid out.
        """
        uncut = [image for image in images if not isinstance(image, ImageCrops)]
        if max_ttft_ms is not None and uncut:
            limits = [num_crops] * len(uncut)
            num_crops = self.fit_crops(uncut, max_ttft_ms, text=text, num_crops=limits)
        crops = [
            image if isinstance(image, ImageCrops) else self.preprocess(image, num_crops)
            for image in images
        ]
        return prompts.encode_prompt(self.tokenizer, text, crops)

    def check_memory(self, prompt: Prompt, max_tokens: int | None = None) -> None:
        """Refuse a prompt that would take too much memory, before any work is done.

        Args:
            prompt: From `encode_prompt`.
            max_tokens: Tokens that the completion may have; when None, it ends where memory does.

        Raises:
            MemoryLimitError: With `max_ram_mb`, the predicted peak is above it.
        """
        self._budget.check(prompt, max_tokens)

    def count_rows(self, prompt: Prompt, max_tokens: int | None, num_choices: int) -> int:
        """How many completions of a prompt are decoded at once, as memory allows.

        Args:
            prompt: From `encode_prompt`.
            max_tokens: Most tokens of a completion; as many as the context holds when None.
            num_choices: Completions that are wanted.
        """
        return self._budget.count_rows(prompt, max_tokens, num_choices)

    def start(
        self,
        prompt: Prompt,
        cancel: threading.Event | None = None,
        max_tokens: int | None = None,
        num_rows: int = 1,
    ) -> Run:
        """Prefill a prompt, or what an earlier run that was kept does not have of it.

        Args:
            prompt: From `encode_prompt`.
            cancel: Setting it, from another thread, stops the work; see `CancelToken`.
            max_tokens: Tokens that the run may grow by; see `check_memory`.
            num_rows: Sequences that it may be forked into; see `count_rows`.

        Raises:
            MemoryLimitError: See `check_memory`.
            PromptError: An image is named more than once.
            ContextLengthError: The prompt is longer than the context.
            GenerationCancelled: `cancel` was set.
        """
        engine = self._open_engine()
        self.check_memory(prompt, max_tokens)
        run = self._prefixes.take(prompt)
        room = self._budget.room(prompt, max_tokens, num_rows)
        if room is not None:  # what is kept goes as far as the request needs its memory
            self._prefixes.shrink(room - self._features.shrink(room))
        try:
            rows = self._encode_images(prompt, cancel)
        except BaseException:
            if run is not None:
                self._prefixes.put(prompt, run)
            raise
        if run is None and self._disk is not None:
            run = self._disk.load_run(prompt, rows, engine)
        if run is None:
            return engine.start(prompt.input_ids, rows, cancel)
        ids = prompt.input_ids[run.num_tokens :]
        num_known = np.count_nonzero(prompt.input_ids[: run.num_tokens] < 0)
        logger.info("%d of %d prompt tokens are cached", run.num_tokens, prompt.num_tokens)
        try:
            run.extend(ids, rows[num_known:], cancel)
        except BaseException:
            self.keep(prompt, run)
            raise
        return run

    def _encode_images(self, prompt: Prompt, cancel: threading.Event | None) -> Features:
        features = [np.empty((0, self.manifest.model.hidden_size), np.float32)]
        for crops in prompt.images:
            check_cancelled(cancel)
            features.append(self.encode_image(crops, cancel))
        return np.concatenate(features)

    def keep(self, prompt: Prompt, run: Run) -> None:
        """Keep a run that `start` gave for prompts that begin alike; it must not be used again.

        Of one that was cancelled, what is whole is kept; of one that failed, nothing.
        """
        if run.num_cached:
            run.rewind(run.num_cached)
        # A rewound run may have nothing of use: at the change of the RoPE factors, for example.
        if self._engine is None or not run.num_cached:
            return
        if self._disk is not None and run.num_tokens >= prompt.num_tokens:
            self._disk.save_run(prompt, run)
        self._prefixes.put(prompt, run)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] = (),
        num_logprobs: int | None = None,
        draft_tokens: int = DRAFT_TOKENS,
        cancel: threading.Event | None = None,
    ) -> Iterator[GenerationEvent]:
        """Generate a completion, token by token.

        Args:
            prompt: From `encode_prompt`.
            max_tokens: Most tokens to generate; as many as the context holds when None.
            temperature: 0 for greedy; see `Sampler` for this and the next six.
            top_p: Probability mass to keep.
            top_k: Most likely tokens to keep; all when None.
            seed: Makes the draws repeatable.
            presence_penalty: Against tokens that the completion has.
            frequency_penalty: The same, each time.
            logit_bias: Token id -> what is added to its logit.
            stop: Texts that end the completion and are not part of it.
            num_logprobs: Give log probabilities with each event, of the token and of this many
                of the most likely ones.
            draft_tokens: Where the text repeats itself, guess up to this many tokens ahead and
                check them in one step; 0 for never. It changes the speed, and the answer no more
                than rounding does; see `drafting`.
            cancel: Setting it, from another thread, stops the work; see `CancelToken`.

        Returns:
            Events as the tokens come; the last has a finish reason.

        Raises:
            ValueError: A parameter is out of its range.
            PromptError, ContextLengthError, MemoryLimitError, GenerationCancelled: As in `start`,
                when the first event is asked for.
        """
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
        if draft_tokens < 0:
            raise ValueError(f"draft_tokens must be at least 0, not {draft_tokens}")
        sampler = Sampler(
            temperature,
            top_p,
            top_k,
            seed,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
        )
        detokenizer = Detokenizer(self.tokenizer, (stop,) if isinstance(stop, str) else stop)
        limits = self.limits(max_tokens, prompt)
        options = num_logprobs, cancel, draft_tokens
        return self._events(prompt, sampler, detokenizer, limits, *options)

    def _events(
        self,
        prompt: Prompt,
        sampler: Sampler,
        detokenizer: Detokenizer,
        limits: Limits,
        num_logprobs: int | None,
        cancel: threading.Event | None,
        draft_tokens: int,
    ) -> Iterator[GenerationEvent]:
        run = self.start(prompt, cancel, limits.max_tokens)
        options = num_logprobs, cancel, draft_tokens
        try:
            yield from generate_events(run, sampler, detokenizer, limits, *options)
        finally:
            self.keep(prompt, run)

    def limits(self, max_tokens: int | None, prompt: Prompt) -> Limits:
        """What ends a completion of a prompt; the end of the memory does as that of the context."""
        return self._budget.limits(prompt, max_tokens)
