"""Stage 1: learn the motion subspace M_psi, with its flow decoder F_omega, from the clips' optical flow (Eq. 3-4, A.3).

`moalign teacher --config PIN --clips FILES --flow FILES --work DIR --out MANIFEST`, or the same under
`torchrun --nproc-per-node N -m moalign`. A stopped training goes on from WORK. The encoder V is frozen and no part of
what is trained; its tokens S are computed as clips are drawn, and kept in memory as far as they fit.
"""

import json
import math
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moalign import manifest
from moalign.align.losses import MOVING, flow_l1
from moalign.clips import FlowClips, draw
from moalign.config import TeacherPin, make_grid
from moalign.grid import Grid
from moalign.progress import say
from moalign.teacher import motion, raft, videomae
from moalign.train import checkpoint, distributed, loop

MEMORY = 2 * 2**30  # bytes of S that a process keeps: all of the miniature, little of the paper's


@dataclass(frozen=True)
class Batch:
    """One micro-batch of stage 1."""

    keys: list[str]
    S: Tensor  # [B, Fm, Hm, Wm, D_v]
    O: Tensor  # [B, Fm-1, 2, h, w], pixels of the flow's size


class Learner(loop.Task):
    """M_psi and F_omega."""

    def __init__(self, head: motion.MotionHead, decoder: motion.FlowDecoder, foreground: float):
        super().__init__()
        self.head, self.decoder, self.foreground = head, decoder, foreground

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """L_flow = |F_omega(M_psi(S)) - O| (Eq. 4), in fp32."""
        M = self.head(batch.S)
        O_hat = self.decoder(M)
        with torch.autocast(O_hat.device.type, enabled=False):
            return {"loss": flow_l1(O_hat, batch.O, self.foreground)}

    def measure(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Errors of the predicted flow of held-out clips."""
        return errors(self.decoder(self.head(batch.S)).float(), batch.O, self.foreground)


def errors(O_hat: Tensor, O: Tensor, foreground: float) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, weight) of the errors of a flow [B, Fm-1, 2, h, w], in pixels.

    l1 is Eq. 4 as it is trained, epe the mean length of the error, epe_moving the same over pixels with |O| > 0.5 px.
    """
    difference = O_hat - O
    length, moving = difference.norm(dim=2), O.norm(dim=2) > MOVING
    clips = torch.tensor(float(len(O)))
    return {
        "l1": (flow_l1(O_hat, O, foreground) * clips, clips),
        "epe": (length.mean() * clips, clips),
        "epe_moving": ((length * moving).sum(), moving.sum()),
    }


class SeenClips(FlowClips):
    """FlowClips with O [Fm-1, 2, h, w] unpacked; pixels are not decoded again once their tokens are in `known`."""

    def __init__(self, *given: Any, known: dict[str, Tensor], flow_size: tuple[int, int]):
        super().__init__(*given)
        self.known, self.flow_size = known, flow_size

    def __getitem__(self, i: int) -> dict[str, Any]:
        key = self.keys[i]
        item = {"key": key, "flow": self.flow(i)} if key in self.known else super().__getitem__(i)
        return item | {"O": raft.unpack(item["flow"], self.flow_size)}


class Features:
    """S = V(x0) as clips are drawn, one clip at a time, so that its numbers depend on no other clip."""

    def __init__(
        self,
        encoder: videomae.VideoMAE,
        grid: Grid,
        known: dict[str, Tensor],
        device: torch.device,
    ):
        self.encoder, self.grid, self.known, self.device = encoder.to(device), grid, known, device
        self.room = MEMORY

    @torch.no_grad()
    def __call__(self, item: dict[str, Any]) -> Tensor:
        key = item["key"]
        if key in self.known:
            return self.known[key].to(self.device)
        S = self.encoder(videomae.view(item["x0"][None].to(self.device), self.grid))[0]
        if self.room >= S.nbytes:
            self.room -= S.nbytes
            self.known[key] = S.cpu()
        return S

    def collate(self, items: list[dict[str, Any]], streams: Tensor) -> Batch:
        """Rows of SeenClips as a batch; nothing is random in stage 1 but the order."""
        S = torch.stack([self(item) for item in items])
        O = torch.stack([item["O"] for item in items])
        return Batch([item["key"] for item in items], S, O)


def run(config: str, clips: list[str], flow: list[str], work: str, out: str) -> None:
    """Train, then write teacher.safetensors (of the best validation, A21) and log.jsonl; rows of manifest.Weights."""
    pin = TeacherPin.load(config)
    accelerator = distributed.start(pin.machine, pin.teacher.precision)
    row, grid, known = pin.backbone, make_grid(pin.backbone, pin.encoder), {}
    train, heldout = (
        SeenClips(clips, flow, split, row.frames, row.fps, row.size, known=known, flow_size=pin.flow.size)
        for split in ("train", "heldout")
    )
    features = Features(videomae.load(pin.encoder), grid, known, accelerator.device)
    torch.manual_seed(pin.teacher.seed)
    head = motion.MotionHead(pin.encoder.width, pin.teacher.channels)
    decoder = motion.FlowDecoder(head.width, pin.teacher.decoder, pin.flow.size)
    learner = Learner(head, decoder, pin.teacher.foreground)
    inputs = [*clips, *flow]
    place = checkpoint.folder(work, config, inputs)
    plan = loop.Plan("teacher", "teacher", pin.teacher, pin.teacher.seed, math.prod(grid.motion), best="l1")
    data = loop.Data(train, heldout, features.collate)
    given = (learner, data, plan, accelerator, place, pin.model_dump(mode="json"))
    if not accelerator.is_main_process:
        loop.fit(*given)
        return
    with manifest.making(out, manifest.Weights, pin=config, inputs=inputs) as made:
        export(learner, loop.fit(*given), made, pin)
        made.notes |= baselines(train, heldout, pin)
        made.notes["processes"] = accelerator.num_processes
        for name in ("validation", "zero_flow", "mean_flow"):
            say(f"teacher: {name}, held-out clips: {made.notes.get(name)}")
    checkpoint.prune(place, keep=1)


def export(learner: Learner, outcome: loop.Outcome, made: manifest.Making, pin: TeacherPin) -> None:
    """What the targets are made with."""
    folder = made.path.parent
    sizes = {"D_v": pin.encoder.width, "channels": pin.teacher.channels, "decoder": pin.teacher.decoder}
    told = json.dumps({"step": outcome.step, "size": pin.flow.size, **sizes})  # one entry: several come in any order
    motion.save(folder / "teacher.safetensors", learner.head, learner.decoder, {"teacher": told})
    shutil.copyfile(outcome.log, folder / "log.jsonl")
    for name, file in {"teacher": "teacher.safetensors", "log": "log.jsonl"}.items():
        made.file(file)
        made.rows.append(manifest.Weights(name, file, outcome.step))
    made.notes["validation"] = outcome.metrics


def baselines(train: SeenClips, heldout: SeenClips, pin: TeacherPin) -> dict[str, dict[str, float]]:
    """Errors on the validation's clips of two flows that know nothing: none at all, and the training clips' mean."""
    if not len(heldout):
        return {}
    sample = draw(loop.VALIDATION_SEED, 0, min(loop.VALIDATION, len(train)), len(train))
    size = pin.flow.size
    mean = sum(raft.unpack(train.flow(i), size).double() for i in sample).div(len(sample)).float()
    flows = [raft.unpack(heldout.flow(i), size) for (i,) in loop.validation_groups(len(heldout), 1)]
    found = {}
    for name, O_hat in {"zero_flow": torch.zeros_like(mean), "mean_flow": mean}.items():
        rows = [errors(O_hat[None], O[None], pin.teacher.foreground) for O in flows]
        sums = {key: [sum(float(row[key][side]) for row in rows) for side in (0, 1)] for key in rows[0]}
        found[name] = {key: total / weight for key, (total, weight) in sums.items() if weight}
    return found
