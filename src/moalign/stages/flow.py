"""RAFT's optical flow O of one shard of clips (Sec. 3.2): `moalign flow --config PIN --clips SHARD --out MANIFEST`."""

import torch

from moalign import device, manifest, shards
from moalign.clips import decoded
from moalign.config import FlowPin, make_grid
from moalign.progress import track
from moalign.teacher import raft


@torch.no_grad()
def run(config: str, clips: str, out: str) -> None:
    """Write the flow shard of a clip manifest: deflated clip by clip (`raft.pack`), rows of manifest.Flow."""
    pin = FlowPin.load(config)
    where = device.use(pin.machine)
    grid = make_grid(pin.backbone, pin.encoder)
    given = manifest.read(clips, manifest.Clip)
    model = raft.load(pin.flow).to(where)
    with manifest.making(out, manifest.Flow, pin=config, inputs=[clips]) as made:
        name = f"{made.path.stem}.safetensors"
        packed = []
        for clip, x0 in track(decoded(given, pin.backbone, pin.machine), "flow", len(given.rows)):
            O = raft.flow(model, x0[None].to(where), grid, pin.flow)[0].cpu()
            motion = O.square().sum(1).sqrt().mean().item()
            made.rows.append(manifest.Flow(clip.key, name, len(packed), round(motion, 6)))
            packed.append(raft.pack(O))
            made.count("values out of range", raft.outside(O))
        if packed:
            shards.write_tensors(made.path.parent / name, shards.end_to_end("flow", packed), {"unit": "1/64 pixel"})
            made.file(name)
        made.count("clips", len(packed))
