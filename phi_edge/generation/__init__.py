"""Generation: options, the choice of each token, and the loops that make completions of it."""

from phi_edge.generation.loop import Answer, Generation, GenerationEvent, TokenUsage
from phi_edge.generation.options import GenerationOptions

__all__ = ["Answer", "Generation", "GenerationEvent", "GenerationOptions", "TokenUsage"]
