"""What the student is aligned to, for one shard of clips: M = M_psi(V(x0)) (Eq. 3), or V's raw tokens S.

`moalign targets --config PIN --clips SHARD [--teacher MANIFEST] --out MANIFEST`
"""

import torch

from moalign import device, manifest, shards
from moalign.clips import load_clip
from moalign.config import TargetsPin, make_grid
from moalign.errors import Problem
from moalign.progress import track
from moalign.teacher import motion, videomae
from moalign.teacher.targets import TARGETS


@torch.no_grad()
def run(config: str, clips: str, out: str, teacher: str | None = None) -> None:
    """Write the target shard of a clip manifest: float16 [N, Fm, Hm, Wm, D], rows of manifest.Target."""
    pin = TargetsPin.load(config)
    where = device.use(pin.machine)
    if pin.target == "motion" and teacher is None:
        raise Problem("--teacher: missing; the target `motion` is what stage 1 learned")
    given = manifest.read(clips, manifest.Clip)
    head = motion.load(manifest.read(teacher, manifest.Weights)) if pin.target == "motion" else None
    encoder = videomae.load(pin.encoder).to(where)
    grid = make_grid(pin.backbone, pin.encoder)
    build = TARGETS[pin.target](encoder, head.to(where) if head else None, grid)
    inputs = [clips, *([teacher] if head else [])]
    with manifest.making(out, manifest.Target, pin=config, inputs=inputs) as made:
        name = f"{made.path.stem}.safetensors"
        rows = []
        for clip in track(given.rows, f"targets, {pin.target}"):
            x0 = load_clip(given.path.parent, clip, pin.backbone.frames, pin.backbone.fps, pin.backbone.size)
            made.rows.append(manifest.Target(clip.key, name, len(rows)))
            rows.append(build(x0[None].to(where))[0].half().cpu())
        if rows:
            shards.write_tensors(made.path.parent / name, {"target": torch.stack(rows)}, {"target": pin.target})
            made.file(name)
        made.count("clips", len(rows))
