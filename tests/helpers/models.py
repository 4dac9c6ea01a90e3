"""Models that remember what they were asked to do."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

import phi_edge
from phi_edge.generation.loop import Generation


class ListeningModel(phi_edge.Model):
    """Keeps the prompts that it is asked to go on with, as `prompts`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.prompts: list[phi_edge.Prompt] = []

    @override
    def generate(self, prompt: phi_edge.Prompt, *args: Any, **fields: Any) -> Generation:
        self.prompts.append(prompt)
        return super().generate(prompt, *args, **fields)
