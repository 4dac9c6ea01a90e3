"""A question in one line, and one whose answer comes word by word and has to fit a schema."""

from pathlib import Path

import phi_edge

chart = Path(__file__).parents[1] / "chart.png"

with phi_edge.load_model() as model:
    print(model.ask("Which bar is the tallest?", images=[chart]))

    schema = {"enum": ["red", "green", "blue", "grey"]}
    for event in model.stream("What colour is it?", images=[chart], json_schema=schema):
        print(event.text, end="", flush=True)
    print()
