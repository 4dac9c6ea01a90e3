"""Certificates: how near a package's next-token distributions are to a reference package's.

Both packages go through the samples' answers, or the reference's own where there is none, and are
compared at every token. Then each answers freely, greedily.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phi_edge.engine import Logits, Run
from phi_edge.errors import PackageError
from phi_edge.image_file import open_image
from phi_edge.model import Model
from phi_edge.prompt import Prompt
from phi_edge.samples import Sample

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

    def follow(self, found: Run, reference: Run, token_ids: Iterable[int]) -> None:
        """Append right tokens to a run of each package, and count every one.

        Args:
            found: A run of the package.
            reference: A run of the reference.
            token_ids: What comes next.
        """
        for token_id in token_ids:
            self.add(found.logits, reference.logits, token_id)
            found.append(token_id)
            reference.append(token_id)


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How near a package is to its reference.

    Attributes:
        package, reference: Name and precision of each.
        num_samples, num_tokens: How much was compared.
        next_token_agreement: Part of the tokens at which both find the same one most likely.
        kl_divergence: Mean, in nats.
        perplexity, reference_perplexity: Of the answers.
        greedy_agreement: Mean part of the first 32 greedy tokens before the first that differs.
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

    def as_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return dataclasses.asdict(self)


def certify(model: Model, reference: Model, samples: Sequence[Sample]) -> Certificate:
    """Compare two packages of one checkpoint.

    Raises:
        ValueError: There are no samples.
        PackageError: The packages have different tokenizers.
        ImageError: An image of the samples cannot be read.
    """
    if not samples:
        raise ValueError("there are no samples to compare the packages on")
    if model.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise PackageError("the packages have different tokenizers, so they cannot be compared")
    agreement = Agreement()
    same = []
    for sample in samples:
        images = [open_image(path) for path in sample.images]
        crops = [model.preprocess(image) for image in images]
        prompt, answer = sample.encode(model.tokenizer, crops)
        greedy = _greedy(reference, prompt)
        runs = (model.start(prompt), reference.start(prompt))
        agreement.follow(*runs, answer.tolist() or greedy)
        same.append(_common_part(_greedy(model, prompt), greedy))
    return Certificate(
        package=f"{model.manifest.name}, {model.manifest.precision}",
        reference=f"{reference.manifest.name}, {reference.manifest.precision}",
        num_samples=len(samples),
        num_tokens=agreement.num_tokens,
        next_token_agreement=agreement.equal,
        kl_divergence=agreement.kl,
        perplexity=math.exp(-agreement.sum_log_p / agreement.num_tokens),
        reference_perplexity=math.exp(-agreement.sum_reference_log_p / agreement.num_tokens),
        greedy_agreement=float(np.mean(same)),
    )


def _greedy(model: Model, prompt: Prompt) -> list[int]:
    return [event.token_id for event in model.generate(prompt, max_tokens=_NUM_GREEDY_TOKENS)]


def _common_part(found: Sequence[int], reference: Sequence[int]) -> float:
    """Length of what two sequences begin with alike, as a part of the longer one's."""
    pairs = zip(found, reference, strict=False)
    first = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
    longest = max(len(found), len(reference))
    return (min(len(found), len(reference)) if first is None else first) / longest
