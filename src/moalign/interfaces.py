"""The shapes that the wings agree on; only types, so that no wing needs to know another.

B clips; F H W pixels; Fl Hl Wl latents; Ft Ht Wt transformer tokens; Fm Hm Wm motion tokens; P = Hm * Wm; D channels.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor, nn

from moalign.config import Sampling
from moalign.grid import Grid


@dataclass(frozen=True)
class Noised:
    """What the transformer is asked at one training step (Sec. 3.1)."""

    z_t: Tensor  # the backbone's own latent layout and scale
    t: Tensor  # [B] timesteps
    target: Tensor  # what `predict` should return: v (CogVideoX) or eps - z0 (Wan), same shape as z_t


@dataclass(frozen=True)
class Batch:
    """One micro-batch of stage 2, on the device."""

    keys: list[str]  # clips, for messages
    streams: Tensor  # [B] int64: one random stream per (seed, step, clip)
    z0: Tensor  # [B, C, Fl, Hl, Wl] unscaled latents
    prompt: Tensor  # [B, T, Dtext], padded as the backbone wants it
    target: Tensor | None  # [B, Fm, Hm, Wm, D] M or S, where the method has one


class Backbone(Protocol):
    """A text-to-video diffusion model behind five calls."""

    grid: Grid
    module: nn.Module  # the transformer: what is trained, wrapped and saved
    ends: tuple[nn.Module, nn.Module]  # its first and last projection

    def encode(self, x0: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> unscaled z0 [B, C, Fl, Hl, Wl] (posterior mean)."""
        ...

    def embed(self, prompts: list[str]) -> Tensor:
        """Prompts -> states [B, T, Dtext], padded."""
        ...

    def noise(self, z0: Tensor, streams: Tensor) -> Noised:
        """Draw t and eps, clip by clip, each from its own stream [B]."""
        ...

    def predict(self, noised: Noised, prompt: Tensor, layers: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """Prediction, and Y [B, Ft, Ht, Wt, D] of each of the blocks `layers` (counted from 1): its video tokens."""
        ...

    def sample(self, prompts: list[str], sampling: Sampling, rngs: list[Generator]) -> Tensor:
        """Videos [B, 3, F, H, W] in [0, 1], one noise generator per prompt."""
        ...

    def save(self, folder: str) -> None:
        """The transformer in the stock format."""
        ...


class Target(Protocol):
    """From pixels to what the student is aligned to."""

    width: int

    def __call__(self, x0: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1], the backbone's clip -> [B, Fm, Hm, Wm, width]."""
        ...
