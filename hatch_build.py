"""Puts the top-level folders `export` and `quantize` into the wheel as `phi_edge.export` and
`phi_edge.quantize`, so that no wheel fills site-packages with such general names.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ToolFoldersHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the folders to every wheel but the editable one, where the checkout has them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See `BuildHookInterface.initialize`; the version of an editable build is "editable"."""
        if self.target_name == "wheel" and version != "editable":
            for folder in ("export", "quantize"):
                build_data["force_include"][folder] = f"phi_edge/{folder}"
