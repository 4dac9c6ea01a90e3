"""Certificates of packages."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import phi_edge
from export import Checkpoint, CheckpointReference
from phi_edge import PackageError
from phi_edge.cli import cli
from phi_edge.engine.base import Logits
from phi_edge.evaluation.certify import (
    CERTIFICATE_FILE,
    Agreement,
    PackageReference,
    certify,
    observe,
    predict,
)
from phi_edge.evaluation.samples import Sample, bundled_samples
from phi_edge.text.prompt import Prompt

from .conftest import GOLDEN, Exporter

SAMPLES = [
    Sample("Hello there", "Good morning."),
    Sample("What is it?", "A dot.", (GOLDEN / "images" / "rgba_64x64.png",)),
]


def test_agreement_by_hand() -> None:
    """Two tokens, and distributions that are each other's mirror."""
    agreement = Agreement()
    agreement.add(np.array([0.0, 1.0], np.float32), np.array([1.0, 0.0], np.float32), 1)
    assert (agreement.num_tokens, agreement.equal) == (1, 0)
    p = 1 / (1 + math.exp(-1))
    assert agreement.kl == pytest.approx(p * math.log(p / (1 - p)) + (1 - p) * math.log(1 / p - 1))
    assert agreement.sum_log_p == pytest.approx(math.log(p))
    assert agreement.sum_reference_log_p == pytest.approx(math.log(1 - p))


def test_a_package_agrees_with_itself(model: phi_edge.Model) -> None:
    certificate = certify(observe(model, SAMPLES), PackageReference(model))
    assert certificate.num_samples == 2
    assert certificate.next_token_agreement == certificate.greedy_agreement == 1
    assert certificate.kl_divergence == pytest.approx(0, abs=1e-6)
    assert certificate.perplexity == pytest.approx(certificate.reference_perplexity, rel=1e-4)


def test_without_an_answer_the_package_gives_one(model: phi_edge.Model) -> None:
    sample = Sample("Hello there")
    prompt, answer = sample.encode(model.tokenizer, [])
    assert len(answer) == 0
    num_greedy = len(list(model.generate(prompt, max_tokens=32)))
    (seen,) = observe(model, [sample]).samples
    assert len(seen.logits) == seen.num_greedy == num_greedy


def test_perplexity_is_that_of_the_log_probabilities(model: phi_edge.Model) -> None:
    """As the API gives them: a greedy answer's own perplexity."""
    sample = Sample("Hello there")
    prompt, _ = sample.encode(model.tokenizer, [])
    events = list(model.generate(prompt, max_tokens=5, num_logprobs=0))
    ids = [event.token_id for event in events]
    logits = predict(model, Prompt(np.concatenate([prompt.input_ids, ids])), len(ids))
    agreement = Agreement()
    agreement.add_all(logits, logits, ids)
    expected = sum(event.logprobs.logprob for event in events if event.logprobs)
    assert agreement.sum_log_p == pytest.approx(expected, abs=1e-3)
    assert agreement.num_tokens == 5


def test_a_checkpoint_is_a_reference(
    compact_checkpoint: Path, export_compact: Exporter, compact_fp32: Path, tmp_path: Path
) -> None:
    """It says what the fp32 package says, image features included, and leaves nothing behind."""
    with phi_edge.load_model(export_compact("int4")) as model:
        seen = observe(model, SAMPLES)
    with phi_edge.load_model(compact_fp32) as model:
        expected = certify(seen, PackageReference(model))
    folder = tmp_path / "work"
    found = certify(seen, CheckpointReference(Checkpoint(compact_checkpoint), folder))
    assert not folder.exists()
    assert 0 < found.image_feature_error < 0.1  # type: ignore[operator]
    for name, value in expected.as_dict().items():
        if not isinstance(value, str):
            assert getattr(found, name) == pytest.approx(value, rel=1e-3)


def test_greedy_agreement_ends_at_the_first_difference(model: phi_edge.Model) -> None:
    """A reference that would have chosen another third token agrees on two of five."""

    class Other(PackageReference):
        def logits(self, prompts: Sequence[Prompt], counts: Sequence[int]) -> Iterator[Logits]:
            for index, logits in enumerate(super().logits(prompts, counts)):
                if index % 2:
                    logits[2] *= -1
                yield logits

    seen = observe(model, SAMPLES[:1])
    certificate = certify(seen, Other(model))
    assert certificate.next_token_agreement == 1
    assert certificate.greedy_agreement == 2 / seen.samples[0].num_greedy


def test_command(export_compact: Exporter, compact_fp32: Path, tmp_path: Path) -> None:
    """It writes down what it says; the package still loads."""
    package = Path(shutil.copytree(export_compact("int4"), tmp_path / "package"))
    cli.main(["certify", str(package), "--reference", str(compact_fp32)], standalone_mode=False)
    facts = json.loads((package / CERTIFICATE_FILE).read_text())
    assert facts["num_samples"] == len(bundled_samples("held_out"))
    assert 0 < facts["kl_divergence"] < 0.1
    assert facts["next_token_agreement"] > 0.5
    phi_edge.load_model(package).close()


def test_packages_that_cannot_be_compared(model: phi_edge.Model, compact_fp32: Path) -> None:
    with pytest.raises(ValueError, match="no samples"):
        observe(model, [])
    with phi_edge.load_model(compact_fp32) as other:
        other.tokenizer.add_tokens(["surplus"])
        with pytest.raises(PackageError, match="different tokenizers"):
            certify(observe(model, SAMPLES[:1]), PackageReference(other))
