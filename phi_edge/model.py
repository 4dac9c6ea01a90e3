"""The model: images and prompts in, features, logits, tokens and text out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from phi_edge import image as image_processing
from phi_edge import package
from phi_edge import prompt as prompts
from phi_edge.caches import FeatureCache, PrefixCache
from phi_edge.drafting import DRAFT_TOKENS
from phi_edge.engine import Engine, Features, Run, check_cancelled
from phi_edge.errors import EngineError, PackageError
from phi_edge.generation import GenerationEvent, Limits, generate_events
from phi_edge.image import ImageCrops
from phi_edge.ort_engine import OrtEngine
from phi_edge.prompt import Prompt
from phi_edge.sampling import Sampler
from phi_edge.text import Detokenizer

if TYPE_CHECKING:
    from typing_extensions import Self


logger = logging.getLogger(__name__)

# A small model of the same architecture, for trying things out; see its README.md.
BUNDLED_MODEL = Path(__file__).parent / "phi-edge-tiny"
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
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self._engine: Engine | None = engine
        self._features = FeatureCache(_FEATURE_CACHE_BYTES)
        self._prefixes = PrefixCache(prefix_cache_bytes)

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

    def encode_image(self, crops: ImageCrops) -> Features:
        """Image features, float32 [num_tokens, hidden_size], which cannot be written to.

        Those of the images that came last are kept, and given again for the same pixels.
        """
        features = self._features.get(crops)
        if features is None:
            features = self._open_engine().encode_image(crops)
            features.setflags(write=False)
            self._features.put(crops, features)
        return features

    def encode_prompt(
        self,
        text: str,
        images: Sequence[Image.Image | ImageCrops] = (),
        num_crops: int | None = None,
    ) -> Prompt:
        """Tokenize a prompt in the chat template.

        Args:
            text: As `phi_edge.prompt.chat_text` makes it, with a tag `<|image_k|>` an image.
            images: The images that the tags name, in the order of their numbers.
            num_crops: As in `preprocess`, for images that are not cut yet.

        Raises:
            PromptError: Tags and images do not match.
            ImageError: An image cannot be decoded or laid out.
        """
        crops = [
            image if isinstance(image, ImageCrops) else self.preprocess(image, num_crops)
            for image in images
        ]
        return prompts.encode_prompt(self.tokenizer, text, crops)

    def start(self, prompt: Prompt, cancel: threading.Event | None = None) -> Run:
        """Prefill a prompt, or what an earlier run that was kept does not have of it.

        Args:
            prompt: From `encode_prompt`.
            cancel: Setting it, from another thread, stops the prefill.

        Raises:
            PromptError: An image is named more than once.
            ContextLengthError: The prompt is longer than the context.
            GenerationCancelled: `cancel` was set.
        """
        engine = self._open_engine()
        features = [np.empty((0, self.manifest.model.hidden_size), np.float32)]
        for crops in prompt.images:
            check_cancelled(cancel)
            features.append(self.encode_image(crops))
        run = self._prefixes.take(prompt)
        if run is None:
            return engine.start(prompt.input_ids, np.concatenate(features), cancel)
        ids = prompt.input_ids[run.num_tokens :]
        num_known = np.count_nonzero(prompt.input_ids[: run.num_tokens] < 0)
        logger.info("%d of %d prompt tokens are cached", run.num_tokens, prompt.num_tokens)
        run.extend(ids, np.concatenate(features)[num_known:], cancel)
        return run

    def keep(self, prompt: Prompt, run: Run) -> None:
        """Keep a run that `start` gave for prompts that begin alike; it must not be used again."""
        if self._engine is not None:
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
            cancel: Setting it, from another thread, stops the run between chunks of the prompt
                and between tokens.

        Returns:
            Events as the tokens come; the last has a finish reason.

        Raises:
            ValueError: A parameter is out of its range.
            PromptError, ContextLengthError, GenerationCancelled: As in `start`, when the first
                event is asked for.
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
        limits = self.limits(max_tokens)
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
        run = self.start(prompt, cancel)
        options = num_logprobs, cancel, draft_tokens
        try:
            yield from generate_events(run, sampler, detokenizer, limits, *options)
        finally:
            self.keep(prompt, run)

    def limits(self, max_tokens: int | None = None) -> Limits:
        """What ends a completion of this model."""
        model = self.manifest.model
        return Limits(model.eos_token_ids, model.context_length, max_tokens)


def load_model(
    path: str | Path | None = None,
    *,
    provider: str = "cpu",
    num_threads: int | None = None,
    prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
    verify: bool = False,
) -> Model:
    """Load a package.

    Args:
        path: The package folder; None for the bundled phi-edge-tiny, which knows little more than
            coloured shapes, bar charts and printed words.
        provider: Where to run: "cpu", "cuda" or "dml". It is never replaced by another.
        num_threads: Threads for the CPU kernels; None for one a physical core.
        prefix_cache_bytes: How much memory finished conversations may keep, so that their next
            turn, or another question about the same image, needs no new prefill; 0 for none.
        verify: Read the whole package and compare the digests of the large files too.

    Raises:
        PackageError: The package is missing, damaged, or was changed after its export.
        ProviderError: ONNX Runtime or the provider is not available.
        EngineError: A graph cannot be loaded.
    """
    folder = BUNDLED_MODEL if path is None else Path(path)
    manifest = package.read_manifest(folder)
    package.check_files(folder, manifest, verify=verify)
    try:
        tokenizer = Tokenizer.from_file(str(folder / package.TOKENIZER_FILE))
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
        raise PackageError(f"{folder / package.TOKENIZER_FILE} cannot be read: {error}") from None
    engine = OrtEngine(folder, manifest.model, provider, num_threads)
    return Model(manifest, tokenizer, engine, prefix_cache_bytes)
