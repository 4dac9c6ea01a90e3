"""Muon: momentum, made orthogonal, for the matrices inside a network.

Source: K. Jordan and others, "Muon: An optimizer for hidden layers in neural networks" (2024), and
its constants; the scale of an update is that of J. Liu and others, arXiv:2502.16982, section 2.2,
so that learning rates are those of Adam. `torch.optim.Muon` computes in bfloat16, which takes a CPU
without bfloat16 kernels longer than the network itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Make the singular values of a matrix nearly 1; the singular vectors hardly change."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T).T
    a, b, c = _COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """For parameters of two dimensions or more; those after the first count as one."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that have a gradient once."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.flatten(1)
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradient)
                state["momentum"].lerp_(gradient, 1 - group["momentum"])
                update = orthogonalise(gradient.lerp(state["momentum"], group["momentum"]))
                scale = 0.2 * max(update.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update.view_as(parameter), alpha=group["lr"] * scale)
