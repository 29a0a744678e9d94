"""Muon: momentum whose update is made orthogonal. It gets further than AdamW in the few steps that nano has.

After K. Jordan et al., "Muon: an optimizer for hidden layers" (2024); the scale by 0.2 sqrt(max(rows, columns)) follows
Liu et al., arXiv:2502.16982, so that one learning rate serves it and AdamW. Convolution kernels are matrices
[out, in * kernel]. Vectors, embeddings and output layers belong in AdamW.
"""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of the matrix U S V^T, by Newton-Schulz iteration in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    flipped = x.shape[0] > x.shape[1]
    x = x.T if flipped else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if flipped else x).float()


class Muon(torch.optim.Optimizer):
    """`params`: tensors of two and more dimensions."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).reshape(p.shape[0], -1)
                scale = 0.2 * max(update.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalise(update).view(p.shape), alpha=-group["lr"] * scale)


class Pair:
    """Muon for the hidden matrices and AdamW, at `ratio` times its learning rate, for the rest, as one optimizer."""

    def __init__(self, matrices: list[Tensor], others: list[Tensor], lr: float, weight_decay: float = 0.0,
                 ratio: float = 1.0):
        self.parts = [Muon(matrices, lr=lr, weight_decay=weight_decay),
                      torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)]
        for group in self.parts[1].param_groups:
            group["ratio"] = ratio

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
