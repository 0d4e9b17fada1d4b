"""What the student learns beside the video, for what it draws of one shard of clips: M = M_psi(V(x0)) (Eq. 3), V's raw
tokens S, or the latents of optical flow as a video (VideoJAM, Sec. A.6).

`moalign targets --config PIN --clips SHARD [--drawn LIST] [--teacher MANIFEST] --out MANIFEST`
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moalign import backbones, device, manifest, shards
from moalign.clips import decoded, of_shard
from moalign.config import TargetsPin, make_grid
from moalign.errors import Problem
from moalign.progress import track
from moalign.teacher import motion, raft, videomae
from moalign.teacher.flowvideo import flow_video
from moalign.teacher.targets import TARGETS


@torch.no_grad()
def run(config: str, clips: str, out: str, teacher: str | None = None, drawn: str | None = None) -> None:
    """Write the target shard of a clip manifest, of the clips that `drawn` lists or of all: rows of manifest.Target.

    float16 [N, Fm, Hm, Wm, D]; of the target `flow_video` [N, C, Fl, Hl, Wl], unscaled as latents are.
    """
    pin = TargetsPin.load(config)
    where = device.use(pin.machine)
    if pin.target == "motion" and teacher is None:
        raise Problem("--teacher: missing; the target `motion` is what stage 1 learned")
    given = of_shard(clips, drawn)
    build = builder(pin, teacher, where)
    inputs = [clips, *([drawn] if drawn else []), *([teacher] if pin.target == "motion" else [])]
    with manifest.making(out, manifest.Target, pin=config, inputs=inputs) as made:
        name = f"{made.path.stem}.safetensors"
        rows = []
        for clip, x0 in track(decoded(given, pin.backbone, pin.machine), f"targets, {pin.target}", len(given.rows)):
            made.rows.append(manifest.Target(clip.key, name, len(rows)))
            rows.append(build(x0[None].to(where))[0].half().cpu())
        if rows:
            shards.write_tensors(made.path.parent / name, {"target": torch.stack(rows)}, {"target": pin.target})
            made.file(name)
        made.count("clips", len(rows))


def builder(pin: TargetsPin, teacher: str | None, where: torch.device) -> Callable[[Tensor], Tensor]:
    """From x0 [B, 3, F, H, W] in [-1, 1] to the target of a pin."""
    grid = make_grid(pin.backbone, pin.encoder)
    if pin.target == "flow_video":
        backbone = backbones.load(pin.backbone, grid, where, parts=("vae",))
        network = raft.load(pin.flow).to(where)
        return lambda x0: backbone.encode(flow_video(network, x0, pin.flow))
    head = motion.load(manifest.read(teacher, manifest.Weights)).to(where) if pin.target == "motion" else None
    return TARGETS[pin.target](videomae.load(pin.encoder).to(where), head, grid)
