"""CogVideoX: v-prediction at zero terminal SNR, T5 without a mask, latents laid out frame first."""

from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch import Generator, Tensor, nn
from transformers import T5EncoderModel

from moalign import config
from moalign.backbones.base import TextToVideo, draw, per_clip
from moalign.backbones.loading import Checkpoint, Parts
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.interfaces import Noised


class CogVideoX(TextToVideo):
    """CogVideoX-2B, or a smaller model of its classes.

    Inside, latents are [B, Fl, C, Hl, Wl] times the VAE's scaling factor; outside [B, C, Fl, Hl, Wl], unscaled.
    """

    transformer_class = CogVideoXTransformer3DModel
    vae_class = AutoencoderKLCogVideoX
    text_class = T5EncoderModel
    block_list = "transformer_blocks"
    schedulers = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}  # noqa: RUF012
    widths: ClassVar[tuple[int, ...]] = (1,)  # channels that the transformer may have, in those of the VAE's latents

    def __init__(self, row: config.Backbone, grid: Grid, parts: Parts) -> None:
        super().__init__(row, grid, parts)
        self.scale = parts.vae_config["scaling_factor"]
        # [1000] in float64: the rescale to zero terminal SNR needs it, and abar[999] is exactly 0
        self.abar = CogVideoXDDIMScheduler.from_config(parts.scheduler_config).alphas_cumprod.double()

    @classmethod
    def check(cls, row: config.Backbone, checkpoint: Checkpoint) -> None:
        found, agree = checkpoint.configs["transformer"], checkpoint.agree
        heads = found["num_attention_heads"] * found["attention_head_dim"]
        agree("transformer", "num_layers", found["num_layers"], "blocks", row.blocks)
        agree("transformer", "num_attention_heads x attention_head_dim", heads, "width", row.width)
        agree("transformer", "patch_size", found["patch_size"], "patch", row.patch)
        agree("transformer", "max_text_seq_length", found["max_text_seq_length"], "text_tokens", row.text_tokens)
        if found.get("use_rotary_positional_embeddings") or found.get("patch_size_t"):
            raise Problem(
                f"{checkpoint.folders['transformer']}: rotary positions or patches in time (CogVideoX 5B, 1.5) are not"
                " supported; name the `weights` of CogVideoX-2B or a model of its kind"
            )
        channels = (found["in_channels"], found["out_channels"])
        found = checkpoint.configs["vae"]
        allowed = [times * found["latent_channels"] for times in cls.widths]
        if channels not in [(number, number) for number in allowed]:
            raise Problem(
                f"{checkpoint.folders['transformer']}: {channels[0]} channels in and {channels[1]} out, where the"
                f" VAE's latents need {' or '.join(map(str, allowed))}; name other `weights`, or a run of this method"
            )
        space = 2 ** (len(found["block_out_channels"]) - 1)
        stride = [found["temporal_compression_ratio"], space]
        agree("vae", "stride in time and space", stride, "stride", list(row.stride))
        prediction = checkpoint.configs["scheduler"].get("prediction_type")
        if prediction != "v_prediction":
            raise Problem(
                f"{checkpoint.folders['scheduler']}: prediction_type is {prediction}, and a cogvideox backbone is"
                " trained as v_prediction; name other `weights`"
            )

    @property
    def ends(self) -> tuple[nn.Module, nn.Module]:
        return self.transformer.patch_embed.proj, self.transformer.proj_out

    def noise(self, z0: Tensor, streams: Tensor) -> Noised:
        """z_t = sqrt(abar) z0 + sqrt(1 - abar) eps, target v = sqrt(abar) eps - sqrt(1 - abar) z0, on scaled latents.

        t is uniform over the integers 0..999. The mean squared error on v, unweighted, is what the stock trainers
        compute as 1 / (1 - abar) times the error of the recovered z0.
        """
        z0 = self._checked(z0, streams)
        t, eps = draw(streams, z0.shape[1:], lambda rng: torch.randint(len(self.abar), (), generator=rng))
        return self._mix(z0, t, eps)

    def _mix(self, z0: Tensor, t: Tensor, eps: Tensor) -> Noised:
        """Unscaled z0 and eps at the levels t [B]; t and eps are on the CPU, where they were drawn."""
        z0 = z0 * self.scale
        eps, abar = eps.to(z0), self.abar[t]
        signal, noise = per_clip(abar.sqrt(), z0), per_clip((1 - abar).sqrt(), z0)
        z_t, v = signal * z0 + noise * eps, signal * eps - noise * z0
        return Noised(frames_first(z_t), t.to(z0.device), frames_first(v))

    def states(self, prompts: list[str]) -> list[Tensor]:
        """[T, Dtext] each, T = text_tokens, padding included.

        The T5 runs without a mask here: padding is attended to and its states reach the transformer, and they differ
        from prompt to prompt. Nothing shorter reproduces what the stock pipeline feeds, so nothing shorter is kept.
        """
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.row.text_tokens,
            truncation=True,
            return_tensors="pt",
        )
        return list(self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0])

    def pad(self, states: list[Tensor]) -> Tensor:
        """[T, Dtext] each -> [B, T, Dtext]; zeros would not be what the T5 makes of padding, so none are added."""
        for kept in states:
            if len(kept) != self.row.text_tokens:
                raise Problem(
                    f"prompt states of {len(kept)} tokens; CogVideoX needs all {self.row.text_tokens} of the backbone's"
                    " `text_tokens`, so run `encode` again for this backbone"
                )
        return torch.stack(states)

    def sample(self, prompts: list[str], sampling: config.Sampling, rngs: list[Generator]) -> Tensor:
        pipeline, call = self._ready(prompts, sampling, rngs)
        return self._decode(pipeline, pipeline(**call).frames)

    def _ready(
        self, prompts: list[str], sampling: config.Sampling, rngs: list[Generator]
    ) -> tuple[CogVideoXPipeline, dict[str, Any]]:
        """The stock pipeline, and the arguments with which it draws latents [B, Fl, C, Hl, Wl]."""
        scheduler = self._scheduler_class(sampling).from_config(self.scheduler_config)
        if sampling.shift is not None:
            raise Problem(f"sampling.shift: {sampling.shift} has no meaning for a cogvideox backbone; set it to null")
        own = {"use_dynamic_cfg": sampling.dynamic_guidance, "output_type": "latent"}
        return self._pipeline(CogVideoXPipeline, scheduler), self._call(prompts, sampling, rngs) | own

    @torch.no_grad()
    def _decode(self, pipeline: CogVideoXPipeline, latents: Tensor) -> Tensor:
        """Videos of drawn latents; the VAE keeps its own precision, so this is not left to the pipeline's call."""
        video = pipeline.decode_latents(latents.to(self.vae.dtype))
        return pipeline.video_processor.postprocess_video(video, output_type="pt").transpose(1, 2)


def frames_first(z: Tensor) -> Tensor:
    """[B, C, Fl, Hl, Wl] -> [B, Fl, C, Hl, Wl], as CogVideoX's transformer wants it."""
    return z.transpose(1, 2).contiguous()
