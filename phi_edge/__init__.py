"""phi_edge runs Phi-3.5-vision on one's own machine, on ONNX Runtime."""

from __future__ import annotations

from phi_edge.cancel import CancelToken
from phi_edge.client import ChatCompletionsClient, load_client
from phi_edge.errors import (
    CalibrationError,
    CheckpointError,
    CheckpointNotFoundError,
    ContextLengthError,
    EngineError,
    GenerationCancelled,
    HttpResponseError,
    ImageError,
    MemoryLimitError,
    OutOfMemoryError,
    PackageError,
    PackageNotFoundError,
    PhiEdgeError,
    PromptError,
    ProviderError,
    SamplesError,
)
from phi_edge.generation import Answer, Generation, GenerationEvent, GenerationOptions, TokenUsage
from phi_edge.image.crops import ImageCrops
from phi_edge.loaded_model import Model
from phi_edge.loading import load_model
from phi_edge.text.prompt import Prompt, chat_text

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "CalibrationError",
    "CancelToken",
    "ChatCompletionsClient",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ContextLengthError",
    "EngineError",
    "Generation",
    "GenerationCancelled",
    "GenerationEvent",
    "GenerationOptions",
    "HttpResponseError",
    "ImageCrops",
    "ImageError",
    "MemoryLimitError",
    "Model",
    "OutOfMemoryError",
    "PackageError",
    "PackageNotFoundError",
    "PhiEdgeError",
    "Prompt",
    "PromptError",
    "ProviderError",
    "SamplesError",
    "TokenUsage",
    "__version__",
    "chat_text",
    "load_client",
    "load_model",
]
