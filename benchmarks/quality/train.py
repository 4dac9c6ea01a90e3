"""Trains phi-edge-tiny; resumable.

    python -m benchmarks.quality.train CHECKPOINT [--hours H] [--batch-size B]

CHECKPOINT becomes a Phi-3.5-vision checkpoint of the tiny model. Beside its files it keeps
`training.pt`, from which the same command goes on. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as f
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.synthetic_checkpoint import PREPROCESSOR
from phi_edge.image import ImageCrops
from phi_edge.prompt import chat_text, encode_prompt

from .questions import Example, make_example
from .tiny import CONFIG, write_configuration
from .torch_model import Phi3V

logger = logging.getLogger(__name__)

STATE_FILE = "training.pt"
WEIGHTS_FILE = "model.safetensors"

PEAK_LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 300
SAVE_SECONDS = 120
LOG_STEPS = 50

# Only its size matters here: one square crop.
_CROPS = ImageCrops(np.empty((0, 3, 336, 336), np.float32), (336, 336))
_IGNORED = -100

Batch = tuple[Tensor, Tensor, Tensor]


def encode_example(tokenizer: Tokenizer, example: Example) -> tuple[list[int], list[int]]:
    """Token ids as the runtime makes them, and labels: the answers with their end tokens."""
    crops = [_CROPS] * len(example.scenes)
    # The template ends where the assistant would go on; a whole conversation does not.
    text = chat_text(example.chat(example.turns)).removesuffix(chat_text(()))
    ids = encode_prompt(tokenizer, text, crops).input_ids.tolist()
    begin, end = (tokenizer.token_to_id(token) for token in ("<|assistant|>", "<|end|>"))
    labels, is_answer = [], False
    for token_id in ids:
        labels.append(token_id if is_answer else _IGNORED)
        if token_id == begin:
            is_answer = True
        elif token_id == end:
            is_answer = False
    return ids, labels


def normalise(images: list[npt.NDArray[np.uint8]]) -> Tensor:
    """Pixels as the runtime's preprocessing gives them for an image of one crop."""
    pixels = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = (
        np.array(PREPROCESSOR[key], np.float32)[:, None, None]
        for key in ("image_mean", "image_std")
    )
    return torch.from_numpy((pixels - mean) / std)


class Batches(IterableDataset[Batch]):
    """Batches of the training split from an example number on, without end."""

    def __init__(self, checkpoint: Path, first: int, batch_size: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.first = first
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Give ids and labels [batch, tokens], padded on the right, and images."""
        first = self.first
        while True:
            numbers = range(first, first + self.batch_size)
            yield self.make_batch([make_example("train", number) for number in numbers])
            first += self.batch_size

    def make_batch(self, examples: list[Example]) -> Batch:
        """Put examples into tensors."""
        encoded = [encode_example(self.tokenizer, example) for example in examples]
        longest = max(len(ids) for ids, _ in encoded)
        ids = torch.zeros(len(encoded), longest, dtype=torch.int64)
        labels = torch.full((len(encoded), longest), _IGNORED)
        for row, (row_ids, row_labels) in enumerate(encoded):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            labels[row, : len(row_labels)] = torch.tensor(row_labels)
        images = [np.asarray(image) for example in examples for image in example.images()]
        return ids, labels, normalise(images) if images else torch.empty(0, 3, 336, 336)


def answer_loss(model: Phi3V, batch: Batch) -> tuple[Tensor, float]:
    """Mean cross entropy of the answers' tokens, and the part of them that is most likely."""
    ids, labels, images = batch
    hidden = model(ids[:, :-1], images)
    targets = labels[:, 1:]
    chosen = targets != _IGNORED
    logits = model.lm_head(hidden[chosen])
    accuracy = (logits.argmax(-1) == targets[chosen]).float().mean().item()
    return f.cross_entropy(logits, targets[chosen]), accuracy


def learning_rate(step: int, progress: float) -> float:
    """Linear warm-up over steps, then half a cosine over the training's time.

    Args:
        step: Steps taken.
        progress: Part of the time that has passed, 0 to 1.
    """
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    decay = 0.5 * (1 + float(np.cos(np.pi * min(progress, 1.0))))
    return PEAK_LEARNING_RATE * warm_up * max(decay, 0.02)


class Training:
    """A model with its optimizer, and how far it has come."""

    def __init__(self, checkpoint: Path) -> None:
        """Start, or go on where the checkpoint's last training stopped."""
        self.checkpoint = checkpoint
        self.model = Phi3V(CONFIG)
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
            lr=PEAK_LEARNING_RATE,
            betas=(0.9, 0.98),
        )
        self.step = 0
        self.num_examples = 0
        self.seconds = 0.0
        state_file = checkpoint / STATE_FILE
        if state_file.is_file():
            self._load(torch.load(state_file, weights_only=True))

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.num_examples = state["step"], state["num_examples"]
        self.seconds = state["seconds"]

    def save(self) -> None:
        """Write the state to go on from, and the weights as a checkpoint, in bfloat16."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "num_examples": self.num_examples,
            "seconds": self.seconds,
        }
        partial = self.checkpoint / f"{STATE_FILE}.partial"
        torch.save(state, partial)
        partial.replace(self.checkpoint / STATE_FILE)
        weights = {
            name: tensor.to(torch.bfloat16).contiguous()
            for name, tensor in self.model.state_dict().items()
        }
        partial = self.checkpoint / f"{WEIGHTS_FILE}.partial"
        save_file(weights, partial, metadata={"format": "pt"})
        partial.replace(self.checkpoint / WEIGHTS_FILE)

    def run(self, hours: float, batch_size: int) -> None:
        """Train until `hours` have been spent on this checkpoint, earlier runs included."""
        batches = DataLoader(
            Batches(self.checkpoint, self.num_examples, batch_size),
            batch_size=None,
            num_workers=1,
            prefetch_factor=4,
        )
        losses: list[float] = []
        accuracies: list[float] = []
        last = saved = time.monotonic()
        for batch in batches:
            progress = self.seconds / (hours * 3600)
            if progress >= 1:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, progress)
            loss, accuracy = answer_loss(self.model, batch)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self.num_examples += batch_size
            now = time.monotonic()
            self.seconds += now - last
            last = now
            losses.append(loss.item())
            accuracies.append(accuracy)
            if self.step % LOG_STEPS == 0:
                logger.info(
                    "step %d, %d examples, %.2f h: loss %.3f, tokens right %.3f",
                    self.step,
                    self.num_examples,
                    self.seconds / 3600,
                    np.mean(losses),
                    np.mean(accuracies),
                )
                losses, accuracies = [], []
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--hours", type=float, default=6.0, help="time to train in all")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    if args.hours <= 0 or args.batch_size < 1:
        parser.error("--hours has to be above 0 and --batch-size at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (args.checkpoint / "tokenizer.json").is_file():
        write_configuration(args.checkpoint)
    Training(args.checkpoint).run(args.hours, args.batch_size)


if __name__ == "__main__":
    main()
