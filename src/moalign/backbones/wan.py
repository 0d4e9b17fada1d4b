"""Wan2.1: flow matching at a shifted logit-normal noise level, UMT5 with a mask, latents normalised per channel."""

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Generator, Tensor, nn
from transformers import UMT5EncoderModel

from moalign import config
from moalign.backbones.base import TextToVideo, draw, per_clip
from moalign.backbones.loading import Checkpoint, Parts
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.interfaces import Noised

TIMES = 1000  # timestep of the noise level 1


class Wan(TextToVideo):
    """Wan2.1-T2V, or a smaller model of its classes. Inside, latents are (z0 - mean) / std per channel; outside, z0."""

    transformer_class = WanTransformer3DModel
    vae_class = AutoencoderKLWan
    text_class = UMT5EncoderModel
    block_list = "blocks"
    schedulers = {"unipc": UniPCMultistepScheduler, "euler": FlowMatchEulerDiscreteScheduler}  # noqa: RUF012

    def __init__(self, row: config.Backbone, grid: Grid, parts: Parts) -> None:
        super().__init__(row, grid, parts)
        channels = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(parts.vae_config["latents_mean"]).view(channels)
        self.std = torch.tensor(parts.vae_config["latents_std"]).view(channels)

    @classmethod
    def check(cls, row: config.Backbone, checkpoint: Checkpoint) -> None:
        found, agree = checkpoint.configs["transformer"], checkpoint.agree
        heads = found["num_attention_heads"] * found["attention_head_dim"]
        agree("transformer", "num_layers", found["num_layers"], "blocks", row.blocks)
        agree("transformer", "num_attention_heads x attention_head_dim", heads, "width", row.width)
        time, *space = found["patch_size"]
        agree("transformer", "patch_size", space[0], "patch", row.patch)
        if time != 1 or space[0] != space[1]:
            raise Problem(
                f"{checkpoint.folders['transformer']}: patch_size is {found['patch_size']}; only [1, p, p] is"
                " supported, so name other `weights`"
            )
        found = checkpoint.configs["vae"]
        stride = [found.get("scale_factor_temporal", 4), found.get("scale_factor_spatial", 8)]
        agree("vae", "stride in time and space", stride, "stride", list(row.stride))

    @property
    def ends(self) -> tuple[nn.Module, nn.Module]:
        return self.transformer.patch_embedding, self.transformer.proj_out

    def noise(self, z0: Tensor, streams: Tensor) -> Noised:
        """z_t = (1 - s) z0 + s eps, target eps - z0, on normalised latents; t = 1000 s, not rounded.

        s is logit-normal(0, 1), then shifted towards noise: s' = shift s / (1 + (shift - 1) s).
        """
        z0 = self._checked(z0, streams)
        z0 = (z0 - self.mean.to(z0)) / self.std.to(z0)
        s, eps = draw(streams, z0.shape[1:], lambda rng: torch.randn((), generator=rng).sigmoid())
        s = self.row.shift * s / (1 + (self.row.shift - 1) * s)
        eps, level = eps.to(z0), per_clip(s, z0)
        return Noised((1 - level) * z0 + level * eps, (TIMES * s).to(z0), eps - z0)

    def states(self, prompts: list[str]) -> list[Tensor]:
        """[T_i, Dtext] each, without padding: it is masked out, and the stock pipeline feeds zeros in its place."""
        tokens = self.tokenizer(
            [prompt_clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.row.text_tokens,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.text_encoder.device)
        states = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [kept[:length] for kept, length in zip(states, lengths, strict=True)]

    def sample(self, prompts: list[str], sampling: config.Sampling, rngs: list[Generator]) -> Tensor:
        if sampling.dynamic_guidance:
            raise Problem("sampling.dynamic_guidance: only a cogvideox backbone has it; set it to false")
        pipeline = self._pipeline(WanPipeline, self._scheduler(sampling))
        frames = pipeline(**self._call(prompts, sampling, rngs), output_type="pt").frames
        return frames.transpose(1, 2)

    def _scheduler(self, sampling: config.Sampling) -> UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler:
        """The sampler at the wanted shift, or at the checkpoint's; the two classes name it differently."""
        cls, kept = self._scheduler_class(sampling), self.scheduler_config
        shift = sampling.shift or kept.get("flow_shift", kept.get("shift", 1.0))
        if cls is FlowMatchEulerDiscreteScheduler:
            return cls.from_config(kept, shift=shift)
        return cls.from_config(kept, flow_shift=shift, use_flow_sigmas=True, prediction_type="flow_prediction")
