"""The configuration and the tokenizer of phi-edge-tiny."""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from benchmarks.synthetic_checkpoint import (
    CHAT_TOKENS,
    FIRST_TOKENS,
    FULL_SIZE,
    PREPROCESSOR,
    make_tokenizer,
    save_tokenizer,
)

from .questions import make_example

VOCAB_SIZE = 640
_HEAD_SIZE = 32
_NUM_TOKENIZER_EXAMPLES = 2000

# What is not named here is as in Phi-3.5-vision.
CONFIG: dict[str, Any] = {
    **FULL_SIZE,
    "_name_or_path": "phi-edge-tiny",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB_SIZE,
    # Short of Phi-3.5's 131,072, whose RoPE tables alone would be larger than this model.
    "max_position_embeddings": 16384,
    "rope_scaling": {
        "type": "su",
        "short_factor": [1.0] * (_HEAD_SIZE // 2),
        "long_factor": np.geomspace(1, 4, _HEAD_SIZE // 2).tolist(),
    },
    "img_processor": {
        "image_dim_out": 64,
        "model_name": "phi-edge-tiny",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
        "vision_config": {
            "hidden_act": "quick_gelu",
            "hidden_size": 64,
            "image_size": 336,
            "intermediate_size": 192,
            "layer_norm_eps": 1e-5,
            "num_attention_heads": 4,
            "num_hidden_layers": 5,
            "patch_size": 14,
        },
    },
}


def write_configuration(folder: Path) -> None:
    """Write everything of the checkpoint but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocessor = {**PREPROCESSOR, "num_crops": 1}
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", preprocessor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(train_tokenizer(), folder)


def train_tokenizer() -> Tokenizer:
    """Learn a vocabulary from the questions and answers."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    # Words alone: no merge runs across a space, a digit, a capital or a sign.
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[A-Z]?[a-z]+|."), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(CHAT_TOKENS),
        special_tokens=FIRST_TOKENS,
        initial_alphabet=list("▁" + string.ascii_letters + string.digits + string.punctuation),
        show_progress=False,
    )
    examples = (make_example("train", index) for index in range(_NUM_TOKENIZER_EXAMPLES))
    turns = itertools.chain.from_iterable(example.turns for example in examples)
    learner.train_from_iterator((f"{turn.question} {turn.answer}" for turn in turns), trainer)
    learned = json.loads(learner.to_str())["model"]
    return make_tokenizer(learned["vocab"], [tuple(merge) for merge in learned["merges"]])
