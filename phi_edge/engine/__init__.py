"""Engines: what one is (`base`), those that there are (`ort`, `genai`), and where they run."""

from phi_edge.engine.base import Batch, Engine, Features, Logits, Run

__all__ = ["Batch", "Engine", "Features", "Logits", "Run"]
