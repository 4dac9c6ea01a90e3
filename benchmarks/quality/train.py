"""Train phi-edge-tiny, or go on where the training stopped.

    python -m benchmarks.quality.train CHECKPOINT [--vision-steps V] [--answer-steps A]

CHECKPOINT becomes a Phi-3.5-vision checkpoint of the tiny model. Beside its files it keeps
`training.pt`, from which the same command goes on. Needs the extra `train`.

First the tower alone learns to say what each patch shows, which is cheap; then the whole model
learns to answer, and the tower's first task goes on beside.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as f
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.synthetic_checkpoint import PREPROCESSOR
from phi_edge.image.crops import ImageCrops
from phi_edge.text.prompt import chat_text, encode_prompt

from .muon import Muon
from .questions import Example, Turn, make_example
from .scenes import PATCH_LABELS, Scene, draw, label_patches
from .tiny import CONFIG, write_configuration
from .torch_model import Phi3V

logger = logging.getLogger(__name__)

STATE_FILE = "training.pt"
WEIGHTS_FILE = "model.safetensors"

MATRIX_LEARNING_RATE = 5e-3  # of the matrices inside the network
OTHER_LEARNING_RATE = 3e-3  # of tables, norms, biases and heads
WARM_UP_STEPS = 100
SAVE_SECONDS = 120
LOG_STEPS = 50

# Part of the examples whose turns are one conversation. The turns of the others do not see each
# other, as if each was asked alone; they share the images.
_CONVERSATIONS = 0.25
_PATCH_LOSS = 0.1
# Most patches show nothing, and nearly none holds an anchor.
_NOTHING_WEIGHTS = [0.05 if name == "anchor" else 0.2 for name in PATCH_LABELS]

# Only its size matters here: one square crop.
_CROPS = ImageCrops(np.empty((0, 3, 336, 336), np.float32), (336, 336))
_IGNORED = -100


class Phase(NamedTuple):
    """A part of the training.

    Attributes:
        num_steps: Steps of this phase.
        batch_size: Examples a step.
        vision_only: Only the tower learns.
    """

    num_steps: int
    batch_size: int
    vision_only: bool


class Batch(NamedTuple):
    """What one step learns from; texts are padded on the right.

    Attributes:
        ids, positions, segments: int64 [batch, tokens]; see `Phi3V.forward`.
        labels: int64 [batch, tokens]; the answers with their end tokens, `_IGNORED` elsewhere.
        images: float32 [images, 3, 336, 336].
        patches: int64 [images, labels, 576]; see `label_patches`.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    labels: Tensor
    images: Tensor
    patches: Tensor


def encode_turns(tokenizer: Tokenizer, example: Example, turns: tuple[Turn, ...]) -> list[int]:
    """Encode a conversation with its answers as the runtime does."""
    crops = [_CROPS] * len(example.scenes)
    # The template ends where the assistant would go on; a whole conversation does not.
    text = chat_text(example.chat(turns)).removesuffix(chat_text(()))
    ids: list[int] = encode_prompt(tokenizer, text, crops).input_ids.tolist()
    return ids


def encode_example(
    tokenizer: Tokenizer, example: Example, *, as_conversation: bool
) -> tuple[list[int], list[int], list[int]]:
    """Give the token ids of all turns, with their positions and segments."""
    if as_conversation:
        ids = encode_turns(tokenizer, example, example.turns)
        return ids, list(range(len(ids))), [0] * len(ids)
    ids, positions, segments = [], [], []
    for number, turn in enumerate(example.turns, 1):
        alone = encode_turns(tokenizer, example, (turn,))
        shared = max((at + 1 for at, token_id in enumerate(alone) if token_id < 0), default=0)
        if number == 1:
            ids, positions, segments = alone[:shared], list(range(shared)), [0] * shared
        ids += alone[shared:]
        positions += range(shared, len(alone))
        segments += [number] * (len(alone) - shared)
    return ids, positions, segments


def normalise(scenes: list[Scene]) -> Tensor:
    """Draw pictures as the runtime's preprocessing gives them for an image of one crop."""
    pictures = np.stack([np.asarray(draw(scene)) for scene in scenes])
    pixels = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = (
        np.array(PREPROCESSOR[key], np.float32)[:, None, None]
        for key in ("image_mean", "image_std")
    )
    return torch.from_numpy((pixels - mean) / std)


class Batches(IterableDataset[Batch]):
    """Batches of the training split from an example number on, without end."""

    def __init__(self, checkpoint: Path, first: int, phase: Phase) -> None:
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.begin, self.end = (
            self.tokenizer.token_to_id(token) for token in ("<|assistant|>", "<|end|>")
        )
        self.first = first
        self.phase = phase

    def __iter__(self) -> Iterator[Batch]:
        """Go on from the first."""
        for first in itertools.count(self.first, self.phase.batch_size):
            yield self.make_batch(range(first, first + self.phase.batch_size))

    def make_batch(self, numbers: range) -> Batch:
        """Put examples into tensors."""
        examples = [make_example("train", number) for number in numbers]
        encoded = [
            ([], [], [])
            if self.phase.vision_only
            else encode_example(
                self.tokenizer, example, as_conversation=number % 100 < 100 * _CONVERSATIONS
            )
            for number, example in zip(numbers, examples, strict=True)
        ]
        longest = max(len(example_ids) for example_ids, _, _ in encoded)
        texts = np.zeros((4, len(encoded), longest), np.int64)
        texts[2], texts[3] = -1, _IGNORED
        for row, (example_ids, *where) in enumerate(encoded):
            answers = self.make_labels(example_ids)
            texts[:, row, : len(example_ids)] = example_ids, *where, answers
        scenes = [scene for example in examples for scene in example.scenes]
        patches = torch.from_numpy(np.stack([label_patches(scene) for scene in scenes]))
        ids, positions, segments, labels = map(torch.from_numpy, texts)
        return Batch(ids, positions, segments, labels, normalise(scenes), patches)

    def make_labels(self, ids: list[int]) -> list[int]:
        """Keep the answers' tokens, each with the end token."""
        labels, is_answer = [], False
        for token_id in ids:
            labels.append(token_id if is_answer else _IGNORED)
            is_answer = token_id == self.begin or (is_answer and token_id != self.end)
        return labels


class Trainee(nn.Module):
    """The model, and a linear layer that reads its patches; that one is only for training."""

    def __init__(self) -> None:
        super().__init__()
        self.phi3v = Phi3V(CONFIG)
        self.patch_head = nn.Linear(self.tower_width, sum(PATCH_LABELS.values()))

    @property
    def tower_width(self) -> int:
        """Width of the tower's output."""
        width: int = CONFIG["img_processor"]["vision_config"]["hidden_size"]
        return width

    def patch_loss(self, patches: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Compute the mean cross entropy of what patches show, and the part of it that is right.

        Args:
            patches: float32 [images, 576, width].
            labels: int64 [images, labels, 576]; see `label_patches`.
        """
        loss, right = torch.zeros(()), []
        parts = self.patch_head(patches).split([*PATCH_LABELS.values()], dim=-1)
        for logits, wanted, nothing in zip(parts, labels.unbind(1), _NOTHING_WEIGHTS, strict=True):
            weight = torch.ones(logits.shape[-1])
            weight[0] = nothing
            loss = loss + f.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight)
            shown = wanted > 0
            right.append((logits.argmax(-1) == wanted)[shown].float().mean().item())
        return loss, float(np.mean(right))

    def forward(self, batch: Batch, *, vision_only: bool) -> tuple[Tensor, float]:
        """Compute the loss of a batch, and the part of its answers that would be right."""
        images = self.phi3v.model["vision_embed_tokens"]
        patches = images.encode(batch.images)
        patch_loss, patches_right = self.patch_loss(patches, batch.patches)
        if vision_only:
            return patch_loss, patches_right
        hidden = self.phi3v(
            batch.ids[:, :-1], batch.positions[:, :-1], batch.segments[:, :-1], patches
        )
        targets = batch.labels[:, 1:]
        asked = targets != _IGNORED
        logits = self.phi3v.lm_head(hidden[asked])
        right = (logits.argmax(-1) == targets[asked]).float().mean().item()
        loss = f.cross_entropy(logits, targets[asked])
        return loss + _PATCH_LOSS * patch_loss, right


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Warm up linearly, then go down to a hundredth by half a cosine."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm_up * max(0.5 * (1 + math.cos(math.pi * step / num_steps)), 0.01)


class Training:
    """A model with its optimizers, and how far it has come."""

    def __init__(self, checkpoint: Path) -> None:
        """Start, or go on where the checkpoint's last training stopped."""
        self.checkpoint = checkpoint
        torch.manual_seed(0)
        self.trainee = Trainee()
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.trainee.named_parameters():
            is_inside = parameter.dim() > 1 and ("layers" in name or "img_projection" in name)
            (matrices if is_inside else others).append(parameter)
        self.optimizers = [
            Muon(matrices, MATRIX_LEARNING_RATE),
            torch.optim.AdamW(others, OTHER_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.step = 0
        self.num_examples = 0
        self.seconds = 0.0
        state_file = checkpoint / STATE_FILE
        if state_file.is_file():
            self._load(torch.load(state_file, weights_only=True))

    def _load(self, state: dict[str, Any]) -> None:
        self.trainee.load_state_dict(state["trainee"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.step, self.num_examples = state["step"], state["num_examples"]
        self.seconds = state["seconds"]

    def save(self) -> None:
        """Write the state to go on from, and the weights as a checkpoint, in bfloat16."""
        state = {
            "trainee": self.trainee.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "num_examples": self.num_examples,
            "seconds": self.seconds,
        }
        partial = self.checkpoint / f"{STATE_FILE}.partial"
        torch.save(state, partial)
        partial.replace(self.checkpoint / STATE_FILE)
        weights = {
            name: tensor.to(torch.bfloat16).contiguous()
            for name, tensor in self.trainee.phi3v.state_dict().items()
        }
        partial = self.checkpoint / f"{WEIGHTS_FILE}.partial"
        save_file(weights, partial, metadata={"format": "pt"})
        partial.replace(self.checkpoint / WEIGHTS_FILE)

    def run(self, phases: list[Phase]) -> None:
        """Go through the phases; steps that were taken earlier are not taken again."""
        first_step = 0
        for phase in phases:
            if self.step < first_step + phase.num_steps:
                self._run_phase(phase, first_step)
            first_step += phase.num_steps

    def _run_phase(self, phase: Phase, first_step: int) -> None:
        batches = DataLoader(
            Batches(self.checkpoint, self.num_examples, phase),
            batch_size=None,
            num_workers=1,
            prefetch_factor=4,
        )
        peaks = (MATRIX_LEARNING_RATE, OTHER_LEARNING_RATE)
        figures: list[tuple[float, float]] = []
        last = saved = time.monotonic()
        steps = range(self.step - first_step, phase.num_steps)
        for step, batch in zip(steps, batches, strict=False):
            for optimizer, peak in zip(self.optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * learning_rate_factor(step, phase.num_steps)
            figures.append(self._take_step(batch, vision_only=phase.vision_only))
            self.num_examples += phase.batch_size
            now = time.monotonic()
            self.seconds += now - last
            last = now
            if self.step % LOG_STEPS == 0:
                logger.info(
                    "step %d, %d examples, %.2f h: loss %.3f, right %.3f",
                    self.step,
                    self.num_examples,
                    self.seconds / 3600,
                    *np.mean(figures, axis=0),
                )
                figures = []
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.save()

    def _take_step(self, batch: Batch, *, vision_only: bool) -> tuple[float, float]:
        """Learn from a batch, and give its loss and the part that was right."""
        loss, right = self.trainee(batch, vision_only=vision_only)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=False)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return loss.item(), right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--vision-steps", type=int, default=3000, help="steps for the tower alone")
    parser.add_argument("--answer-steps", type=int, default=5000, help="steps for the whole model")
    args = parser.parse_args()
    if min(args.vision_steps, args.answer_steps) < 1:
        parser.error("--vision-steps and --answer-steps have to be at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (args.checkpoint / "tokenizer.json").is_file():
        write_configuration(args.checkpoint)
    phases = [
        Phase(args.vision_steps, batch_size=16, vision_only=True),
        Phase(args.answer_steps, batch_size=8, vision_only=False),
    ]
    Training(args.checkpoint).run(phases)


if __name__ == "__main__":
    main()
