"""What the two families share: the VAE's posterior, prompts, the tap in the transformer, per-clip noise, saving."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from moalign import config
from moalign.backbones.loading import Checkpoint, Parts
from moalign.backbones.tap import Tap
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.interfaces import Noised

ATTENTION = [  # the kernels behind scaled_dot_product_attention
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]


class TextToVideo(ABC):
    """A stock diffusers model behind the calls of `interfaces.Backbone`; subclasses add what a family does its own way.

    `transformer` is the stock module. `module` is the same until a training wraps it (`backbone.module = DDP(...)`):
    `predict` runs `module`, taps and saves `transformer`.
    """

    transformer_class: ClassVar[type]
    vae_class: ClassVar[type]
    text_class: ClassVar[type]
    block_list: ClassVar[str]  # the transformer's attribute
    schedulers: ClassVar[dict[str, type]]  # what sampling.scheduler may say

    def __init__(self, row: config.Backbone, grid: Grid, parts: Parts) -> None:
        self.row = row
        self.grid = grid
        self.transformer = parts.transformer
        self.module = parts.transformer
        self.vae = parts.vae
        self.text_encoder = parts.text_encoder
        self.tokenizer = parts.tokenizer
        self.scheduler_config = parts.scheduler_config
        if self.transformer is not None:
            self.tap = Tap(getattr(self.transformer, self.block_list))
        for frozen in (self.vae, self.text_encoder):
            if frozen is not None:
                frozen.requires_grad_(False)
        if self.vae is not None:  # few clips at a time: less memory, and no clip's numbers depend on its neighbours
            if self.vae.device.type == "cpu":
                in_pairs(self.vae)
            else:
                self.vae.enable_slicing()

    @classmethod
    @abstractmethod
    def check(cls, row: config.Backbone, checkpoint: Checkpoint) -> None:
        """Problem where a checkpoint's configs disagree with the row."""

    @property
    @abstractmethod
    def ends(self) -> tuple[nn.Module, nn.Module]:
        """The transformer's first and last projection."""

    @abstractmethod
    def noise(self, z0: Tensor, streams: Tensor) -> Noised:
        """Noised latents of unscaled z0 [B, C, Fl, Hl, Wl]; clip b's t and eps come from stream b alone."""

    @abstractmethod
    def states(self, prompts: list[str]) -> list[Tensor]:
        """What must be kept of each prompt, [T_i, Dtext], so that `pad` gives what the stock pipeline feeds.

        The encoder is frozen as loaded, so no graph is built; whoever thaws it to train it gets one.
        """

    @abstractmethod
    def sample(self, prompts: list[str], sampling: config.Sampling, rngs: list[Generator]) -> Tensor:
        """Videos [B, 3, F, H, W] in [0, 1] from the stock pipeline; clip b's noise comes from rngs[b] (on the CPU)."""

    @torch.no_grad()
    def encode(self, x0: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> unscaled z0 [B, C, Fl, Hl, Wl], the mean of q(z0 | x0)."""
        wanted = (3, self.grid.frames, self.grid.height, self.grid.width)
        if tuple(x0.shape[1:]) != wanted:
            raise Problem(f"clips of shape {list(x0.shape[1:])} do not fit the backbone, which needs {list(wanted)}")
        return self.vae.encode(x0.to(self.vae.device, self.vae.dtype)).latent_dist.mean

    def embed(self, prompts: list[str]) -> Tensor:
        """Prompts -> states [B, T, Dtext], padded as the stock pipeline pads them."""
        return self.pad(self.states(prompts))

    def pad(self, states: list[Tensor]) -> Tensor:
        """States [T_i, Dtext] of B prompts -> [B, T, Dtext], zeros after the last."""
        T = self.row.text_tokens
        for kept in states:
            if len(kept) > T:
                raise Problem(
                    f"prompt states of {len(kept)} tokens are longer than the backbone's `text_tokens`, {T};"
                    " run `encode` again for this backbone"
                )
        return torch.stack([torch.cat([kept, kept.new_zeros(T - len(kept), kept.shape[1])]) for kept in states])

    def predict(self, noised: Noised, prompt: Tensor, layers: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """Prediction of `noised.target`, and Y [B, Ft, Ht, Wt, D]: the video tokens of each block of `layers`."""
        inputs = {
            "hidden_states": noised.z_t,
            "timestep": noised.t,
            "encoder_hidden_states": prompt.to(noised.z_t.dtype),
            "return_dict": False,
        }
        for layer in layers:
            if not 1 <= layer <= self.row.blocks:
                raise Problem(f"align.layer: {layer} is not a block of this backbone; allowed: 1-{self.row.blocks}")
        (prediction,), outputs = self.tap.catch(layers, lambda: self.module(**inputs))
        # CogVideoX's blocks return (video, text)
        videos = [output[0] if isinstance(output, tuple) else output for output in outputs]
        return prediction, [video.unflatten(1, self.grid.tokens) for video in videos]

    def checkpoint(self, kind: str) -> None:
        """What a training computes again on the way back: none of it, all but attention, or every block.

        Activations are then kept at the blocks' borders alone. Attention is most of the work at the paper's size and
        little of the memory, so `keep_attention` keeps its outputs.
        """
        if kind == "none":
            return
        kept = (
            {"context_fn": lambda: create_selective_checkpoint_contexts(ATTENTION)} if kind == "keep_attention" else {}
        )
        again = partial(checkpoint, use_reentrant=False, **kept)
        self.transformer.enable_gradient_checkpointing(lambda block, *inputs: again(block.__call__, *inputs))

    def save(self, folder: str | Path) -> None:
        """The transformer, as the stock class reads it."""
        self.transformer.save_pretrained(str(folder))

    def _checked(self, z0: Tensor, streams: Tensor) -> Tensor:
        """z0 in fp32, if its shape is this backbone's."""
        if tuple(z0.shape[2:]) != self.grid.latents or len(z0) != len(streams):
            raise Problem(
                f"latents of shape {list(z0.shape)} with {len(streams)} streams do not fit the backbone, whose latents"
                f" are {list(self.grid.latents)}; run `encode` again for this backbone"
            )
        return z0.float()

    def _call(self, prompts: list[str], sampling: config.Sampling, rngs: list[Generator]) -> dict[str, Any]:
        """The arguments that both stock pipelines take."""
        return {
            "prompt": list(prompts),
            "negative_prompt": sampling.negative_prompt,
            "height": self.grid.height,
            "width": self.grid.width,
            "num_frames": self.grid.frames,
            "num_inference_steps": sampling.steps,
            "guidance_scale": sampling.guidance,
            "generator": list(rngs),
            "max_sequence_length": self.row.text_tokens,
        }

    def _pipeline(self, cls: type, scheduler: Any) -> Any:
        """The stock pipeline over this backbone's parts, its bar switched off."""
        pipeline = cls(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            transformer=self.transformer,
            scheduler=scheduler,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _scheduler_class(self, sampling: config.Sampling) -> type:
        if sampling.scheduler not in self.schedulers:
            raise Problem(
                f"sampling.scheduler: {sampling.scheduler!r} does not go with a {self.row.family} backbone;"
                f" allowed: {', '.join(self.schedulers)}"
            )
        return self.schedulers[sampling.scheduler]


def in_pairs(vae: nn.Module) -> None:
    """Let a VAE take two clips at a time, a last one twice.

    A CPU's fast convolution refuses a lone small clip, and the other takes four times as long. From two clips on its
    numbers are the same in any company.
    """
    encode, decode = vae._encode, vae._decode

    def doubled(clips: Tensor) -> Tensor:
        return clips if len(clips) > 1 else clips.repeat(2, *[1] * (clips.ndim - 1))

    vae._encode = lambda x: torch.cat([encode(doubled(pair))[: len(pair)] for pair in x.split(2)])
    vae._decode = lambda z: DecoderOutput(torch.cat([decode(doubled(pair)).sample[: len(pair)] for pair in z.split(2)]))


def draw(streams: Tensor, shape: torch.Size, level: Callable[[Generator], Tensor]) -> tuple[Tensor, Tensor]:
    """What `level` draws [B] and standard normal eps [B, *shape], clip by clip, each from a generator of its own.

    The generators are the CPU's: the numbers depend on the stream alone, not on the device or the split of a batch.
    """
    levels, noises = [], []
    for stream in streams.tolist():
        rng = Generator().manual_seed(stream)
        levels.append(level(rng))
        noises.append(torch.randn(shape, generator=rng))
    return torch.stack(levels), torch.stack(noises)


def per_clip(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] in the type and on the device of `like`."""
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
