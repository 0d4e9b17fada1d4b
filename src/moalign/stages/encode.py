"""Latents z0 and prompt states of what stage 2 draws of one shard of clips, for one backbone (Sec. 3.1).

`moalign encode --config PIN --clips SHARD [--drawn LIST] --out MANIFEST`. Latents are unscaled, the posterior's mean,
and prompt states are what the stock pipeline would feed.
"""

import torch

from moalign import backbones, device, manifest, shards
from moalign.clips import decoded, of_shard
from moalign.config import EncodePin
from moalign.progress import track


@torch.no_grad()
def run(config: str, clips: str, out: str, drawn: str | None = None) -> None:
    """Write the latent shard of a clip manifest, of the clips that `drawn` lists or of all: rows of manifest.Latent.

    Tensors: mean float16 [N, C, Fl, Hl, Wl]; prompt float32 [sum of T_i, Dtext]; offsets int64 [N + 1].
    """
    pin = EncodePin.load(config)
    where = device.use(pin.machine)
    given = of_shard(clips, drawn)
    backbone = backbones.load(pin.backbone, device=where, parts=("vae", "text"))
    with manifest.making(out, manifest.Latent, pin=config, inputs=[clips, *([drawn] if drawn else [])]) as made:
        name = f"{made.path.stem}.safetensors"
        means, prompts = [], []
        for clip, x0 in track(decoded(given, pin.backbone, pin.machine), "encode", len(given.rows)):
            states = backbone.states([clip.caption])[0]
            made.rows.append(manifest.Latent(clip.key, name, len(means), len(states)))
            means.append(backbone.encode(x0[None].to(where))[0].half().cpu())
            prompts.append(states.float().cpu())
        if means:
            tensors = {"mean": torch.stack(means)} | shards.end_to_end("prompt", prompts)
            shards.write_tensors(made.path.parent / name, tensors)
            made.file(name)
        made.count("clips", len(means))
