"""Text-to-video backbones behind the calls of `interfaces.Backbone`; `load` builds the one that a row describes."""

from pathlib import Path

import torch

from moalign import config
from moalign.backbones.base import TextToVideo
from moalign.backbones.cogvideox import CogVideoX
from moalign.backbones.loading import PARTS, Parts, load_part, load_tokenizer, look
from moalign.backbones.videojam import VideoJAM
from moalign.backbones.wan import Wan
from moalign.errors import Problem
from moalign.grid import Grid

FAMILIES: dict[str, type[TextToVideo]] = {"cogvideox": CogVideoX, "wan": Wan}
JOINT: dict[str, type[TextToVideo]] = {"cogvideox": VideoJAM}


def load(
    row: config.Backbone,
    grid: Grid | None = None,
    device: str | torch.device = "cpu",
    transformer: str | Path | None = None,
    parts: tuple[str, ...] = PARTS,
    dtype: torch.dtype = torch.float32,
    joint: bool = False,
) -> TextToVideo:
    """The backbone of a row, its checkpoint's configs checked against it. Parts that are not named are not loaded.

    grid: None where no teacher is in sight (encode, sample, synth); it is then the row's own.
    transformer: folder of a tuned transformer in the stock format, in place of the row's.
    dtype: of the transformer and the text encoder: fp32 to train, bf16 will do to sample. The VAE is always fp32.
    joint: with optical flow beside the video (VideoJAM); a transformer that knows none yet is widened.
    """
    if joint and row.family not in JOINT:
        raise Problem(f"family: {row.family!r} has no model of video and flow; allowed: {', '.join(JOINT)}")
    family = (JOINT if joint else FAMILIES)[row.family]
    classes = {"transformer": family.transformer_class, "vae": family.vae_class, "text": family.text_class}
    checkpoint = look(row.weights, transformer, parts, row.revision)
    for part in ("transformer", "vae"):
        checkpoint.check_class(part, classes[part], row.family)
    family.check(row, checkpoint)
    loaded = dict.fromkeys(PARTS)
    for part in parts:
        precision = torch.float32 if part == "vae" else dtype
        loaded[part] = load_part(classes[part], checkpoint.folders[part], row.weights, device, precision)
    tokenizer = load_tokenizer(checkpoint.folders["tokenizer"], row.text_tokens) if "text" in parts else None
    made = Parts(
        transformer=loaded["transformer"],
        vae=loaded["vae"],
        text_encoder=loaded["text"],
        tokenizer=tokenizer,
        vae_config=checkpoint.configs["vae"],
        scheduler_config=checkpoint.configs["scheduler"],
    )
    return family(row, grid or own_grid(row), made)


def own_grid(row: config.Backbone) -> Grid:
    """The grid of a backbone that meets no teacher: motion tokens fall on student tokens."""
    height, width = row.size
    return Grid(
        frames=row.frames,
        height=height,
        width=width,
        stride=row.stride,
        patch=row.patch,
        teacher_height=height // (row.stride[1] * row.patch),
        teacher_patch=1,
        teacher_tubelet=1,
    )
