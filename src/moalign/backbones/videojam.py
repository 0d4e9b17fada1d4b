"""VideoJAM over CogVideoX: one stock transformer denoises a video and, in as many channels more, its optical flow.

    u = backbone.predict(backbone.noise(torch.cat([z0, d], 1), streams), prompt)    z0 of the video, d of its flow

Video and flow are the first and the second half of the channels wherever both are. What is trained opens in the stock
class. The stock pipeline draws with it, but decodes no 2C channels and knows no inner guidance: `sample` does.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Generator, Tensor, nn

from moalign import config
from moalign.backbones.base import draw
from moalign.backbones.cogvideox import CogVideoX
from moalign.backbones.loading import Parts
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.interfaces import Noised

FLOW = 0x3C6EF372FE94F82B  # sets the streams of the flow's noise apart from the video's
HIDE = 0x1F83D9ABFB41BD6B  # and those that hide it


class VideoJAM(CogVideoX):
    """CogVideoX with 2C channels in and out; a transformer of C channels is widened."""

    widths = (1, 2)

    def __init__(self, row: config.Backbone, grid: Grid, parts: Parts) -> None:
        self.channels = parts.vae_config["latent_channels"]  # C
        if parts.transformer is not None and parts.transformer.config.in_channels == self.channels:
            widen(parts.transformer)
        super().__init__(row, grid, parts)

    def noise(self, z0: Tensor, streams: Tensor) -> Noised:
        """Of unscaled latents of video and flow, [B, 2C, Fl, Hl, Wl]; both have one t, each its own eps.

        The video's half is, bit for bit, what the other methods of a table see of these clips.
        """
        if z0.shape[1] != 2 * self.channels:
            raise Problem(
                f"latents of {z0.shape[1]} channels, where video and flow have {2 * self.channels}; run `encode` and"
                " `targets` again for this backbone"
            )
        z0, d = z0.chunk(2, 1)
        video = super().noise(z0, streams)
        _, eps = draw(streams ^ FLOW, d.shape[1:], lambda rng: torch.zeros(()))
        flow = self._mix(d.float(), video.t.cpu(), eps)
        both = [torch.cat(pair, 2) for pair in ((video.z_t, flow.z_t), (video.target, flow.target))]
        return Noised(both[0], video.t, both[1])

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(video, flow) of z_t, of a target or of a prediction, [B, Fl, 2C, Hl, Wl]."""
        return x.chunk(2, 2)

    def hide(self, noised: Noised, share: float, streams: Tensor) -> Noised:
        """z_t with its flow half at zero in a share of the clips, each clip's draw from its own stream.

        The target stays. It teaches u(x, no d, y), which `sample` guides away from.
        """
        draws = [torch.rand((), generator=Generator().manual_seed(stream ^ HIDE)) for stream in streams.tolist()]
        hidden = (torch.stack(draws) < share).to(noised.z_t.device)
        z_t = torch.where(hidden[:, None, None, None, None], without_flow(noised.z_t), noised.z_t)
        return Noised(z_t, noised.t, noised.target)

    def sample(
        self, prompts: list[str], sampling: config.Sampling, rngs: list[Generator], inner_guidance: float = 0.0
    ) -> Tensor:
        """Videos [B, 3, F, H, W] in [0, 1] from the stock pipeline, guided by text and by the flow drawn beside them.

        With w1 = guidance - 1 and w2 = inner_guidance, the latter over the first half of the steps alone,

            u = (1 + w1 + w2) u(x, d, y) - w1 u(x, d, no text) - w2 u(x, no d, y)
              = [u(x, d, no text) + guidance (u(x, d, y) - u(x, d, no text))] + w2 (u(x, d, y) - u(x, no d, y)).

        The bracket is the pipeline's own; the rest is added before its scheduler steps. The flow's noise comes from
        generators of its own, so the video's is at every step what the other runs of a table draw.
        """
        pipeline, call = self._ready(prompts, sampling, rngs)
        flow_rngs = [Generator().manual_seed(rng.initial_seed() ^ FLOW) for rng in rngs]
        size = (len(prompts), self.channels, self.grid.frames, self.grid.height, self.grid.width)
        start = partial(pipeline.prepare_latents, *size, self.text_encoder.dtype, self.transformer.device)
        inner = InnerGuidance(inner_guidance, sampling.steps, len(prompts))
        pipeline.scheduler.step = inner.stepping(pipeline.scheduler.step, flow_rngs)
        hook = self.transformer.register_forward_hook(inner.watch, with_kwargs=True)
        try:
            latents = pipeline(**call, latents=torch.cat([start(rngs), start(flow_rngs)], 2)).frames
        finally:
            hook.remove()
        return self._decode(pipeline, self.halves(latents)[0])


class InnerGuidance:
    """w2 (u(x, d, y) - u(x, no d, y)) for half of the steps: from the transformer's call to the scheduler's."""

    def __init__(self, w2: float, steps: int, clips: int) -> None:
        self.w2, self.clips = w2, clips
        self.left = (steps + 1) // 2 if w2 else 0
        self.push: Tensor | float = 0.0

    def watch(self, transformer: nn.Module, _inputs: tuple, given: dict[str, Any], output: tuple[Tensor]) -> None:
        """A forward hook: of the batch [no text; text], or [text], the latter part once more without its flow."""
        self.push = 0.0
        if self.left:
            self.left -= 1
            names = ("hidden_states", "encoder_hidden_states", "timestep")
            z_t, text, t = (given[name][-self.clips :] for name in names)
            blind = transformer.forward(without_flow(z_t), text, t, return_dict=False)[0]  # past the hook
            self.push = self.w2 * (output[0][-self.clips :].float() - blind.float())

    def stepping(self, step: Callable, flow_rngs: list[Generator]) -> Callable:
        """A scheduler's `step` that adds the guidance, then steps video and flow apart, each with its own noise."""

        @wraps(step)  # the pipeline asks its signature what it takes
        def stepped(prediction: Tensor, *rest: Any, generator: list[Generator], **options: Any) -> tuple[Tensor, ...]:
            pairs = [
                value.chunk(2, 2) if isinstance(value, Tensor) and value.ndim == 5 else (value, value)
                for value in (prediction + self.push, *rest)
            ]
            video, flow = zip(*pairs, strict=True)
            made = step(*video, generator=generator, **options), step(*flow, generator=flow_rngs, **options)
            return tuple(torch.cat(pair, 2) for pair in zip(*made, strict=True))

        return stepped


def widen(transformer: CogVideoXTransformer3DModel) -> None:
    """C channels in and out become 2C, the new weights zero: the video's half predicts what it did, whatever d is.

    Both projections count channels first (rows of `proj_out` are channel, then place in the patch), so the new weights
    come after the old ones.
    """
    first, last = transformer.patch_embed.proj, transformer.proj_out
    first.weight = nn.Parameter(torch.cat([first.weight, torch.zeros_like(first.weight)], 1))
    last.weight = nn.Parameter(torch.cat([last.weight, torch.zeros_like(last.weight)]))
    last.bias = nn.Parameter(torch.cat([last.bias, torch.zeros_like(last.bias)]))
    first.in_channels, last.out_features = 2 * first.in_channels, 2 * last.out_features
    transformer.register_to_config(in_channels=first.in_channels, out_channels=first.in_channels)


def without_flow(z_t: Tensor) -> Tensor:
    """z_t [B, Fl, 2C, Hl, Wl], its flow half at zero: "no d"."""
    video, flow = z_t.chunk(2, 2)
    return torch.cat([video, torch.zeros_like(flow)], 2)
