"""Bytes of what the stages keep, from the sizes in params.yaml alone: good to a third or so."""

import math

from moalign.config import Backbone, Params

BITS_PER_PIXEL = 0.55  # of a stored proxy or a sampled video, H.264
DEFLATED = 0.35  # of the int16 that flow is
CAPTION = 100  # tokens of a caption
LATENT_CHANNELS = 16


def pixels(params: Params) -> float:
    """Of a stored clip, of all frames."""
    aspect = (params.subset.min_aspect + params.subset.max_aspect) / 2
    return params.subset.frames * params.subset.short_side**2 * aspect


def clip(params: Params) -> float:
    """A stored clip."""
    return pixels(params) * BITS_PER_PIXEL / 8


def video(row: Backbone) -> float:
    """A video that a backbone writes."""
    return row.frames * math.prod(row.size) * BITS_PER_PIXEL / 8


def flow(params: Params) -> float:
    """O of a clip, int16, deflated."""
    return params.grid(params.teacher.backbone).flows * 2 * math.prod(params.flow.size) * 2 * DEFLATED


def latent(params: Params, backbone: str) -> int:
    """z0 of a clip, or flow as a video's, fp16."""
    return 2 * LATENT_CHANNELS * math.prod(params.grid(backbone).latents)


def prompt(row: Backbone) -> int:
    """States of a clip's caption, fp32: CogVideoX's with their padding; text encoders are about twice as wide."""
    tokens = row.text_tokens if row.family == "cogvideox" else min(CAPTION, row.text_tokens)
    return tokens * 2 * row.width * 4


def target(params: Params, backbone: str, name: str) -> int:
    """What a clip is aligned to, fp16."""
    if name == "flow_video":
        return latent(params, backbone)
    width = {"tokens": params.encoder.width, "motion": params.teacher.channels[-1]}[name]
    return 2 * width * math.prod(params.grid(backbone).motion)


def weights(row: Backbone) -> int:
    """Numbers in a transformer: attention, feed-forward, norms and modulation of each block."""
    return 15 * row.blocks * row.width**2
