"""The error tree.

PhiEdgeError
  x PackageError (ValueError)            a package folder that cannot be used
    - PackageNotFoundError (FileNotFoundError)
  x CheckpointError (ValueError)         a checkpoint that cannot be exported
    - CheckpointNotFoundError (FileNotFoundError)
  x ProviderError (RuntimeError)         ONNX Runtime or an execution provider is not usable
  x ImageError (ValueError)              an image that cannot be read or laid out
  x PromptError (ValueError)             a prompt whose tags, tokens and images do not fit
  x ContextLengthError (ValueError)      more tokens than the model's context holds
  x GenerationCancelled                  the caller asked for the run to stop
  x EngineError (RuntimeError)           the engine failed while running a graph

Each subclasses the built-in that it refines, so that callers who do not know this
package catch what they expect.
"""

from __future__ import annotations


class PhiEdgeError(Exception):
    """Base of every error that this package raises on purpose."""


class PackageError(PhiEdgeError, ValueError):
    """A package folder is damaged, changed, or of a format that this version cannot read."""


class PackageNotFoundError(PackageError, FileNotFoundError):
    """There is no package at the given path."""


class CheckpointError(PhiEdgeError, ValueError):
    """A checkpoint is incomplete, of another architecture, or stored in a refused form."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at the given path or hub name."""


class ProviderError(PhiEdgeError, RuntimeError):
    """ONNX Runtime, or the execution provider asked for, is not usable here."""


class ImageError(PhiEdgeError, ValueError):
    """An image cannot be decoded or has a shape that the model cannot take."""


class PromptError(PhiEdgeError, ValueError):
    """Image tags, images and token ids of a prompt do not fit together."""


class ContextLengthError(PhiEdgeError, ValueError):
    """A sequence would be longer than the model's context.

    Attributes:
        num_tokens: Tokens that the sequence would have.
        context_length: Tokens that the model can take.
    """

    def __init__(self, num_tokens: int, context_length: int) -> None:
        super().__init__(
            f"the sequence would be {num_tokens:,} tokens long, and this model's context holds "
            f"{context_length:,}: shorten the prompt, use fewer crops, or ask for fewer tokens"
        )
        self.num_tokens = num_tokens
        self.context_length = context_length


class GenerationCancelled(PhiEdgeError):  # noqa: N818 - an outcome the caller asked for
    """The run was stopped through its cancel event."""


class EngineError(PhiEdgeError, RuntimeError):
    """ONNX Runtime failed while loading or running a graph."""
