"""Latents z0 and prompt states of what stage 2 draws of one shard of clips, for one backbone (Sec. 3.1).

`moalign encode --config PIN --clips SHARD [--drawn LIST] --out MANIFEST`. Latents are unscaled, mean and log variance
both, so that a training may draw from the posterior, and prompt states are what the stock pipeline would feed.
"""

import torch

from moalign import backbones, device, manifest, shards
from moalign.clips import load_clip, of_shard
from moalign.config import EncodePin
from moalign.progress import track


@torch.no_grad()
def run(config: str, clips: str, out: str, drawn: str | None = None) -> None:
    """Write the latent shard of a clip manifest, of the clips that `drawn` lists or of all: rows of manifest.Latent.

    Tensors: mean, logvar float16 [N, C, Fl, Hl, Wl]; prompt float32 [sum of T_i, Dtext]; offsets int64 [N + 1].
    """
    pin = EncodePin.load(config)
    where = device.use(pin.machine)
    given = of_shard(clips, drawn)
    backbone = backbones.load(pin.backbone, device=where, parts=("vae", "text"))
    with manifest.making(out, manifest.Latent, pin=config, inputs=[clips, *([drawn] if drawn else [])]) as made:
        name = f"{made.path.stem}.safetensors"
        means, logvars, prompts = [], [], []
        for clip in track(given.rows, "encode"):
            x0 = load_clip(given.path.parent, clip, pin.backbone.frames, pin.backbone.fps, pin.backbone.size)
            mean, logvar = backbone.posterior(x0[None].to(where))
            states = backbone.states([clip.caption])[0]
            made.rows.append(manifest.Latent(clip.key, name, len(means), len(states)))
            means.append(mean[0].half().cpu())
            logvars.append(logvar[0].half().cpu())
            prompts.append(states.float().cpu())
        if means:
            tensors = {"mean": torch.stack(means), "logvar": torch.stack(logvars)}
            shards.write_tensors(made.path.parent / name, tensors | shards.end_to_end("prompt", prompts))
            made.file(name)
        made.count("clips", len(means))
