"""A package in phi_edge's own runtime."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import Tokenizer

import phi_edge
from phi_edge.engine.base import Run
from phi_edge.generation.constraint import JsonConstraint, JsonGrammar
from phi_edge.generation.drafting import DRAFT_TOKENS, DraftingRun
from phi_edge.image.crops import CROP_SIZE
from phi_edge.loading import BUNDLED_MODEL
from phi_edge.package import DECODER, TOKENIZER_FILE, read_package
from phi_edge.text.prompt import chat_text, encode_prompt

from .protocol import NUM_AROUND, Figures, peak_rss_bytes, serve

_NUM_TOKENS_SAMPLED_AFTER = 64


class Ours:
    """A loaded package, with one sequence that goes on."""

    def __init__(self, model: str, *, tokenizer: str | None = None, **options: Any) -> None:
        """Load a package.

        Args:
            model: Its folder.
            tokenizer: A `tokenizer.json` for texts; that of phi-edge-tiny, whose words are
                shorter, when None.
            **options: For `load_model`.
        """
        self._model = phi_edge.load_model(model, **options)
        self._tokenizer_file = tokenizer or str(BUNDLED_MODEL / TOKENIZER_FILE)
        self._vocab_size = self._model.manifest.model.vocab_size
        self._package = Path(model)
        self._rng = np.random.default_rng(0)

    def prefill(self, num_tokens: int) -> Figures:
        """Start a sequence of random tokens."""
        prompt = phi_edge.Prompt(self._tokens(num_tokens))
        start = time.perf_counter()
        self._run = self._model.start(prompt)
        seconds = time.perf_counter() - start
        return {"tokens_per_s": num_tokens / seconds}

    def decode(self, num_tokens: int) -> Figures:
        """Add tokens to the sequence, one by one, each the likeliest."""
        token_id = int(self._run.logits.argmax())
        start = time.perf_counter()
        for _ in range(num_tokens):
            token_id = int(self._run.append(token_id).argmax())
        rate = num_tokens / (time.perf_counter() - start)
        return {"tokens_per_s": rate, "weight_bytes_per_s": rate * self._weight_bytes}

    def sampled(self, num_tokens: int) -> Figures:
        """Generate tokens that are drawn, after a prompt of random tokens, nothing drafted."""
        events = self._model.generate(
            phi_edge.Prompt(self._tokens(_NUM_TOKENS_SAMPLED_AFTER)),
            max_tokens=num_tokens + 1,
            temperature=0.8,
            top_p=0.95,
            logit_bias=dict.fromkeys(self._model.manifest.model.eos_token_ids, -1000.0),
            draft_tokens=0,
        )
        next(events)
        start = time.perf_counter()
        for _ in events:
            pass
        return {"tokens_per_s": num_tokens / (time.perf_counter() - start)}

    def choices(self, num_rows: int, num_tokens: int) -> Figures:
        """Decode a sequence, and then so many copies of it together; tokens of all copies count."""
        one = self.decode(num_tokens)["tokens_per_s"]
        batch = self._run.fork(num_rows)
        if batch is None:
            raise RuntimeError("this engine runs one sequence at a time")
        token_ids = self._tokens(num_rows)
        start = time.perf_counter()
        for _ in range(num_tokens):
            token_ids = batch.append(token_ids.tolist()).argmax(axis=1)
        all_rows = num_rows * num_tokens / (time.perf_counter() - start)
        return {
            "tokens_per_s": one,
            "together_per_s": all_rows,
            "together_over_one": all_rows / one,
        }

    @cached_property
    def _weight_bytes(self) -> int:
        """Bytes that a decode step multiplies by; counted by the first step, not by a load."""
        return count_weight_bytes(self._package)

    def replay(self, question: str, schema: dict[str, Any] | None, answer: str) -> Figures:
        """Decode an answer, whatever the logits are, without drafts and with them."""
        tokenizer = Tokenizer.from_file(self._tokenizer_file)
        grammar = JsonGrammar(tokenizer, self._vocab_size, self._model.manifest.model.eos_token_ids)
        compiled = grammar.constrain(schema) if schema else None
        prompt = encode_prompt(tokenizer, chat_text([("user", question)]), ())
        token_ids = tokenizer.encode(answer, add_special_tokens=False).ids
        run = self._model.start(prompt)
        plain, drafted = (
            self._replay(run, prompt, token_ids, compiled and compiled.copy(), draft_tokens)
            for draft_tokens in (0, DRAFT_TOKENS)
        )
        return {
            "tokens_per_s": plain,
            "drafted_per_s": drafted,
            "drafted_over_plain": drafted / plain,
        }

    @staticmethod
    def _replay(
        run: Run,
        prompt: phi_edge.Prompt,
        token_ids: list[int],
        constraint: JsonConstraint | None,
        draft_tokens: int,
    ) -> float:
        run.rewind(prompt.num_tokens)
        ahead = DraftingRun(run, len(token_ids) + 1, draft_tokens, constraint)
        start = time.perf_counter()
        for token_id in token_ids:
            if constraint:
                constraint.allowed()
                constraint.accept(token_id)
            ahead.append(token_id)
        seconds = time.perf_counter() - start
        ahead.close()
        return len(token_ids) / seconds

    def vision(self, seed: int) -> Figures:
        """Encode a new image of five crops, the whole image among them."""
        crops = self._model.preprocess(self._image(seed, 2, 2), 4)
        start = time.perf_counter()
        self._model.encode_image(crops)
        return {"s_per_crop": (time.perf_counter() - start) / len(crops.pixel_values)}

    def question(self, seed: int, rows: int, columns: int, num_tokens: int) -> Figures:
        """Ask about a new image, from its pixels on; the image is cut into rows * columns crops."""
        image = self._image(seed, rows, columns)
        return self._ask(image, rows * columns, num_tokens)

    def second_question(self, seed: int, rows: int, columns: int) -> Figures:
        """Ask about a new image, and then something else about the same one."""
        image = self._image(seed, rows, columns)
        first, second = (self._ask(image, rows * columns, 1)["first_token_s"] for _ in range(2))
        return {"first_s": first, "second_s": second, "second_over_first": second / first}

    def _ask(self, image: Image.Image, num_crops: int, num_tokens: int) -> Figures:
        start = time.perf_counter()
        crops = self._model.preprocess(image, num_crops)
        # The first tokens are always those of the template.
        before = np.arange(10, 10 + NUM_AROUND[0])
        slots = np.full(crops.num_tokens, -1)
        ids = np.concatenate([before, slots, self._tokens(NUM_AROUND[1])])
        events = self._model.generate(phi_edge.Prompt(ids, (crops,)), max_tokens=num_tokens)
        next(events)
        first = time.perf_counter() - start
        for _ in events:
            pass
        return {"first_token_s": first, "peak_rss_bytes": peak_rss_bytes()}

    def _tokens(self, count: int) -> npt.NDArray[np.int64]:
        return self._rng.integers(100, self._vocab_size, count)

    @staticmethod
    def _image(seed: int, rows: int, columns: int) -> Image.Image:
        """Draw noise of the size of the crops, twice as large if there are few, as photos are."""
        scale = 2 if rows * columns <= 4 else 1
        size = (scale * columns * CROP_SIZE, scale * rows * CROP_SIZE)
        if (rows, columns) == (2, 2):
            size = (1344, 1008)
        noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
        return Image.fromarray(noise)


def count_weight_bytes(package: Path) -> int:
    """Count the bytes of weights, scales and zero points that a decode step multiplies by."""
    import onnx_ir as ir

    decoder = ir.load(package / read_package(package).graph_files[DECODER])
    values = {
        value.name: value.const_value.nbytes
        for node in decoder.graph.all_nodes()
        if node.op_type in ("MatMulNBits", "MatMul")
        for value in node.inputs[1:]
        if value is not None and value.const_value is not None
    }
    return sum(values.values())


if __name__ == "__main__":
    serve(Ours)
