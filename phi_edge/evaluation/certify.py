"""Certificates: how near a package's next-token distributions are to its reference's.

The package is run first: along the samples' answers, and freely, greedily. Then the reference is
asked what it would have said at every one of those tokens. So the two are never in memory at the
same time, and a reference can be run layer by layer.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from typing_extensions import override

from phi_edge.engine.base import Features, Logits
from phi_edge.errors import PackageError
from phi_edge.evaluation.samples import Sample
from phi_edge.image.crops import ImageCrops
from phi_edge.image.files import open_image
from phi_edge.loaded_model import Model
from phi_edge.text.prompt import Prompt

CERTIFICATE_FILE = "certificate.json"
_NUM_GREEDY_TOKENS = 32


@dataclasses.dataclass
class Agreement:
    """Sums over positions at which two packages predict the next token.

    Attributes:
        num_tokens: Positions.
        num_equal: Those with the same most likely token.
        sum_kl: KL divergences of the package's distribution from the reference's, in nats.
        sum_log_p, sum_reference_log_p: Log probabilities of the right tokens, in nats.
    """

    num_tokens: int = 0
    num_equal: int = 0
    sum_kl: float = 0.0
    sum_log_p: float = 0.0
    sum_reference_log_p: float = 0.0

    @property
    def equal(self) -> float:
        """Part of the positions with the same most likely token."""
        return self.num_equal / self.num_tokens if self.num_tokens else math.nan

    @property
    def kl(self) -> float:
        """Mean KL divergence in nats."""
        return self.sum_kl / self.num_tokens if self.num_tokens else math.nan

    def add(self, found: Logits, reference: Logits, token_id: int) -> None:
        """Count a position, at which `token_id` is right."""
        log_q, log_p = _log_softmax(found), _log_softmax(reference)
        self.num_tokens += 1
        self.num_equal += int(found.argmax() == reference.argmax())
        self.sum_kl += float(np.sum(np.exp(log_p) * (log_p - log_q)))
        self.sum_log_p += float(log_q[token_id])
        self.sum_reference_log_p += float(log_p[token_id])

    def add_all(self, found: Logits, reference: Logits, token_ids: Iterable[int]) -> None:
        """Count positions in a row, logits [num_tokens, vocab_size]."""
        for row, expected, token_id in zip(found, reference, token_ids, strict=True):
            self.add(row, expected, int(token_id))


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


class Reference(Protocol):
    """What a package is compared with.

    Attributes:
        name: What the certificate calls it.
        tokenizer: Its tokenizer.
    """

    name: str
    tokenizer: Tokenizer

    def logits(self, prompts: Sequence[Prompt], counts: Sequence[int]) -> Iterator[Logits]:
        """Predict the last `count` tokens of each prompt: float32 [count, vocab_size]."""

    def image_features(self, images: Sequence[ImageCrops]) -> Iterator[Features]:
        """Encode each image: float32 [num_tokens, hidden_size]."""


class PackageReference(Reference):
    """Another package of the same checkpoint."""

    def __init__(self, model: Model) -> None:
        """Take the package; it stays the caller's to close."""
        self._model = model
        self.name = _describe(model)
        self.tokenizer = model.tokenizer

    @override
    def logits(self, prompts: Sequence[Prompt], counts: Sequence[int]) -> Iterator[Logits]:
        for prompt, count in zip(prompts, counts, strict=True):
            yield predict(self._model, prompt, count)

    @override
    def image_features(self, images: Sequence[ImageCrops]) -> Iterator[Features]:
        yield from map(self._model.encode_image, images)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How near a package is to its reference.

    Attributes:
        package, reference: What they are.
        num_samples, num_tokens: How much was compared.
        next_token_agreement: Part of the tokens at which both find the same one most likely.
        kl_divergence: Mean, in nats.
        perplexity, reference_perplexity: Of the answers.
        greedy_agreement: Mean part of the package's first 32 greedy tokens before the first that
            the reference would not have chosen.
        image_feature_error: Root of the squared error of image features, as a part of their size;
            their order and number have to be the same. None when no sample has an image.
    """

    package: str
    reference: str
    num_samples: int
    num_tokens: int
    next_token_agreement: float
    kl_divergence: float
    perplexity: float
    reference_perplexity: float
    greedy_agreement: float
    image_feature_error: float | None

    def as_dict(self) -> dict[str, Any]:
        """Give the fields, as JSON has them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a package does on a sample.

    Attributes:
        answered: The prompt with the sample's answer; with the greedy one if it has none.
        logits: float32 [num_answer_tokens, vocab_size], what predicts the answer.
        continued: The prompt with the package's greedy answer.
        num_greedy: Tokens of that.
        features: Those of the sample's images.
    """

    answered: Prompt
    logits: Logits
    continued: Prompt
    num_greedy: int
    features: list[Features]


@dataclasses.dataclass(frozen=True)
class Observations:
    """What a package does on samples; `package` says what it is."""

    package: str
    tokenizer: Tokenizer
    samples: list[Observation]


def observe(model: Model, samples: Sequence[Sample]) -> Observations:
    """Run a package on samples. It is not needed after that, and may be closed.

    Raises:
        ValueError: There are no samples.
        ImageError: An image of the samples cannot be read.
    """
    if not samples:
        raise ValueError("there are no samples to compare the packages on")
    observations = []
    for sample in samples:
        crops = [model.preprocess(open_image(path)) for path in sample.images]
        prompt, answer = sample.encode(model.tokenizer, crops)
        events = model.generate(prompt, max_tokens=_NUM_GREEDY_TOKENS)
        greedy = np.array([event.token_id for event in events], np.int64)
        answer = answer if len(answer) else greedy
        answered, continued = (
            Prompt(np.concatenate([prompt.input_ids, ids]), prompt.images)
            for ids in (answer, greedy)
        )
        logits = predict(model, answered, len(answer))
        features = [model.encode_image(image) for image in crops]
        observations.append(Observation(answered, logits, continued, len(greedy), features))
    return Observations(_describe(model), model.tokenizer, observations)


def certify(observations: Observations, reference: Reference) -> Certificate:
    """Compare what a package did with what its reference does.

    Raises:
        PackageError: The two have different tokenizers.
    """
    if observations.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise PackageError("the packages have different tokenizers, so they cannot be compared")
    agreement, same = Agreement(), []
    samples = observations.samples
    prompts = [prompt for seen in samples for prompt in (seen.answered, seen.continued)]
    counts = [count for seen in samples for count in (len(seen.logits), seen.num_greedy)]
    logits = reference.logits(prompts, counts)
    for seen in samples:
        answer = seen.answered.input_ids[-len(seen.logits) :]
        agreement.add_all(seen.logits, next(logits), answer)
        greedy = seen.continued.input_ids[-seen.num_greedy :]
        different = np.flatnonzero(next(logits).argmax(axis=-1) != greedy)
        same.append((different[0] if different.size else seen.num_greedy) / seen.num_greedy)
    next(logits, None)  # a reference may be at work until it is asked for more than there is
    return Certificate(
        package=observations.package,
        reference=reference.name,
        num_samples=len(samples),
        num_tokens=agreement.num_tokens,
        next_token_agreement=agreement.equal,
        kl_divergence=agreement.kl,
        perplexity=math.exp(-agreement.sum_log_p / agreement.num_tokens),
        reference_perplexity=math.exp(-agreement.sum_reference_log_p / agreement.num_tokens),
        greedy_agreement=float(np.mean(same)),
        image_feature_error=_feature_error(samples, reference),
    )


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Write `certificate.json` into a package folder, in the place of an older one."""
    text = json.dumps(certificate.as_dict(), indent=2) + "\n"
    partial = folder / f".{CERTIFICATE_FILE}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / CERTIFICATE_FILE)


def predict(model: Model, prompt: Prompt, count: int) -> Logits:
    """Predict the last tokens of a prompt: logits [count, vocab_size]."""
    start, last = prompt.input_ids[:-count], prompt.input_ids[-count:-1]
    run = model.start(Prompt(start, prompt.images))
    return np.stack([run.logits, *(run.append(int(token_id)) for token_id in last)])


def _feature_error(samples: Sequence[Observation], reference: Reference) -> float | None:
    images = [image for seen in samples for image in seen.answered.images]
    if not images:
        return None
    found = np.concatenate([features for seen in samples for features in seen.features])
    expected = np.concatenate(list(reference.image_features(images)))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _describe(model: Model) -> str:
    return f"{model.manifest.name}, {model.manifest.precision}"
