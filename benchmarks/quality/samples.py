"""Write questions and answers as a folder of samples, to calibrate an export with.

python -m benchmarks.quality.samples FOLDER [--split train|held_out] [--count N]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from phi_edge.evaluation.samples import LINES_FILE

from .questions import Split, make_example


def write_samples(folder: Path, split: Split, count: int) -> None:
    """Write one turn each of the first conversations of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        example = make_example(split, number)
        names = [f"{number}-{index}.png" for index in range(len(example.scenes))]
        for name, image in zip(names, example.images(), strict=True):
            image.save(folder / name)
        turn = example.turns[0]
        lines.append({"question": turn.question, "answer": turn.answer, "images": names})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / LINES_FILE).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=("train", "held_out"), default="train")
    parser.add_argument("--count", type=int, default=100, help="conversations, one turn of each")
    args = parser.parse_args()
    write_samples(args.folder, args.split, args.count)


if __name__ == "__main__":
    main()
