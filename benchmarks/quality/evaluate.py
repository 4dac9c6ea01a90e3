"""Count how many held-out questions a package answers rightly, task by task.

    python -m benchmarks.quality.evaluate PACKAGE [--per-task N] [--reference PACKAGE] [--json FILE]

The questions are those that phi-edge-tiny is trained for; any package can be asked. Each is asked
alone, and some after the earlier turns of their conversation, through the public API. With a
reference package, the two are also compared token by token along the right answers.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import phi_edge
from benchmarks.tables import format_header, format_row
from phi_edge.evaluation.certify import Agreement, predict
from phi_edge.evaluation.samples import ANSWER_END
from phi_edge.text.prompt import Prompt, chat_text

from .questions import TASKS, Example, Turn, make_example

MULTI_TURN = "multi_turn"
_MAX_ANSWER_TOKENS = 24
# Two-sided 95 %.
_Z = 1.959964


@dataclasses.dataclass
class Score:
    """Right answers among those asked."""

    num_right: int = 0
    num_asked: int = 0

    @property
    def accuracy(self) -> float:
        """Part of the answers that are right."""
        return self.num_right / self.num_asked if self.num_asked else math.nan

    def interval(self) -> tuple[float, float]:
        """Compute the 95 % confidence interval of the accuracy: E. B. Wilson, JASA 22 (1927)."""
        if not self.num_asked:
            return (math.nan, math.nan)
        n, p = self.num_asked, self.accuracy
        centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        return (centre - half, centre + half)


@dataclasses.dataclass(frozen=True)
class Question:
    """One turn of a conversation.

    Attributes:
        with_history: Ask it after the earlier turns with their right answers. Those may give
            hints, so such a question counts as multi-turn and not for its own task.
    """

    example: Example
    index: int
    with_history: bool

    @property
    def turn(self) -> Turn:
        """The turn that is asked."""
        return self.example.turns[self.index]

    @property
    def task(self) -> str:
        """The task that it counts for."""
        return MULTI_TURN if self.with_history else self.turn.task

    def encode(self, model: phi_edge.Model) -> phi_edge.Prompt:
        """Make the prompt, with the images before the first question."""
        first = 0 if self.with_history else self.index
        *asked, _answer = self.example.chat(self.example.turns[first : self.index + 1])
        return model.encode_prompt(chat_text(asked), self.example.images())


def select_questions(per_task: int) -> list[Question]:
    """Select held-out questions, `per_task` of each task."""
    selected: dict[str, list[Question]] = {task: [] for task in (*TASKS, MULTI_TURN)}
    for number in itertools.count():
        example = make_example("held_out", number)
        for index, with_history in itertools.product(range(len(example.turns)), (False, True)):
            question = Question(example, index, with_history)
            of_task = selected[question.task]
            if len(of_task) < per_task and (index or not with_history):
                of_task.append(question)
        if all(len(of_task) == per_task for of_task in selected.values()):
            break
    return [question for of_task in selected.values() for question in of_task]


def is_right(answer: str, turn: Turn) -> bool:
    """Tell whether an answer says what it should, as JSON if that was asked for."""
    if turn.task != "json":
        return answer.strip().rstrip(".").lower() == turn.answer.rstrip(".").lower()
    try:
        return bool(json.loads(answer) == json.loads(turn.answer))
    except json.JSONDecodeError:
        return False


def evaluate(model: phi_edge.Model, questions: Sequence[Question]) -> dict[str, Score]:
    """Ask every question and count, by task and in all."""
    scores = {task: Score() for task in dict.fromkeys(question.task for question in questions)}
    scores["all"] = Score()
    for question in questions:
        events = model.generate(question.encode(model), max_tokens=_MAX_ANSWER_TOKENS)
        right = is_right("".join(event.text for event in events), question.turn)
        for name in (question.task, "all"):
            scores[name].num_asked += 1
            scores[name].num_right += right
    return scores


def compare(
    model: phi_edge.Model, reference: phi_edge.Model, questions: Sequence[Question]
) -> Agreement:
    """Compare next-token distributions along the right answers."""
    agreement = Agreement()
    for question in questions:
        answer = f"{question.turn.answer}{ANSWER_END}"
        ids = model.tokenizer.encode(answer, add_special_tokens=False).ids
        prompt = question.encode(model)
        answered = Prompt(np.concatenate([prompt.input_ids, ids]), prompt.images)
        found, expected = (predict(each, answered, len(ids)) for each in (model, reference))
        agreement.add_all(found, expected, ids)
    return agreement


def format_table(scores: dict[str, Score]) -> str:
    """Format a Markdown table."""
    lines = [format_header("task", "asked", "right", "95 % interval")]
    for task, score in scores.items():
        low, high = score.interval()
        interval = f"{low:.1%} - {high:.1%}"
        lines.append(format_row(task, score.num_asked, f"{score.accuracy:.1%}", interval))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--per-task", type=int, default=200, help="questions a task")
    parser.add_argument("--reference", type=Path, help="package to compare with")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    if args.per_task < 1:
        parser.error("--per-task has to be at least 1")
    questions = select_questions(args.per_task)
    with phi_edge.load_model(args.package) as model:
        scores = evaluate(model, questions)
        print(format_table(scores))
        figures = {
            task: {**dataclasses.asdict(score), "interval": score.interval()}
            for task, score in scores.items()
        }
        result: dict[str, object] = {"package": str(args.package), "scores": figures}
        if args.reference:
            with phi_edge.load_model(args.reference) as reference:
                agreement = compare(model, reference, questions)
            result["agreement"] = dataclasses.asdict(agreement)
            print(
                f"\nnext-token agreement {agreement.equal:.2%}, "
                f"KL divergence {agreement.kl:.4f} nats"
            )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
