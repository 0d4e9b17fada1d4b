"""What the student is aligned to: the motion subspace M (Eq. 3), or the encoder's own tokens S (ablation, Tab. 4)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moalign.grid import Grid
from moalign.interfaces import Target
from moalign.teacher import freeze
from moalign.teacher.motion import MotionHead
from moalign.teacher.videomae import VideoMAE, view


@dataclass(frozen=True)
class Tokens:
    """S = V(x0): [B, 3, F, H, W] in [-1, 1] -> [B, Fm, Hm, Wm, D_v]."""

    encoder: VideoMAE
    grid: Grid

    @property
    def width(self) -> int:
        return self.encoder.width

    @torch.no_grad()
    def __call__(self, x0: Tensor) -> Tensor:
        return self.encoder(view(x0, self.grid))


@dataclass(frozen=True)
class Motion:
    """M = M_psi(V(x0)): [B, 3, F, H, W] in [-1, 1] -> [B, Fm, Hm, Wm, D_m], in fp32."""

    tokens: Tokens
    head: MotionHead

    @property
    def width(self) -> int:
        return self.head.width

    @torch.no_grad()
    def __call__(self, x0: Tensor) -> Tensor:
        with torch.autocast(x0.device.type, enabled=False):
            return self.head(self.tokens(x0))


TARGETS: dict[str, Callable[[VideoMAE, MotionHead | None, Grid], Target] | None] = {
    "none": None,
    "tokens": lambda encoder, head, grid: Tokens(freeze(encoder), grid),
    "motion": lambda encoder, head, grid: Motion(Tokens(freeze(encoder), grid), freeze(head)),
}
