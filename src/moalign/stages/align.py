"""Stage 2: fine-tune one run's transformer, aligned to its target (Eq. 5-9, A.4).

`moalign align --config PIN --clips FILES --latents FILES [--targets FILES] --work DIR --out MANIFEST`, or the same
under `torchrun --nproc-per-node N -m moalign`. A stopped training goes on from WORK. Trained are the transformer and
the projector; VAE and teacher are not even loaded, the text encoder for the empty prompt alone, where prompts are
dropped: z0 (the posterior's mean), prompt states and targets come from shards.
"""

import math
import shutil
from functools import partial
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from moalign import backbones, manifest, mirror, shards
from moalign.align.losses import mse
from moalign.align.objective import alignment
from moalign.align.projector import Projector
from moalign.backbones import TextToVideo, VideoJAM
from moalign.clips import LatentClips, drawn, streams
from moalign.config import AlignPin, Method, make_grid
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.interfaces import Batch
from moalign.train import checkpoint, distributed, loop

DROP = 0x5DEECE66D  # sets the stream of prompt dropout apart from the noise's
NOISES = 4  # over which the similarities of a run's tokens are averaged
RELATED = 512  # tokens of a matrix of similarities, about
NO_ALIGNMENT = Method(target="none", loss="zero")


class Student(loop.Task):
    """The transformer, with the projectors that only its training needs: one per aligned block."""

    def __init__(self, backbone: TextToVideo, projectors: nn.ModuleList, pin: AlignPin, empty: Tensor | None):
        super().__init__()
        self.transformer = backbone.module
        self.projectors = projectors
        self.backbone = backbone
        self.layers = pin.align.layer if len(projectors) else ()
        self.sharded = False  # over ranks, so that no rank alone can call it
        self.lam, self.dropout = pin.method.lam, pin.align.prompt_dropout
        self.alignment = alignment(pin.method, projectors)
        self.register_buffer("empty", empty, persistent=False)  # [1, T, Dtext], None without prompt dropout

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's own."""
        return getattr(self.backbone.transformer, self.backbone.block_list)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """L = L_diff + lambda L_align (Eq. 9); both are logged, and how many tokens per clip have no direction."""
        denoise, align, zeros = self.losses(batch, self.drop(batch.prompt, batch.streams))
        return {"loss": denoise + self.lam * align, "denoise": denoise, "align": align, "zero_tokens": zeros}

    def losses(self, batch: Batch, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_diff (Sec. 3.1) and L_align (Eq. 8, or what the method has in its place), in fp32; and the zero tokens."""
        noised = self.backbone.noise(batch.z0, batch.streams)
        prediction, Ys = self.backbone.predict(noised, prompt, self.layers)
        with torch.autocast(batch.z0.device.type, enabled=False):
            return mse(prediction, noised.target), *self.alignment([Y.float() for Y in Ys], batch.target)

    def drop(self, prompt: Tensor, streams: Tensor) -> Tensor:
        """Prompt states [B, T, Dtext], replaced by the empty prompt's with probability `align.prompt_dropout` (A31)."""
        if self.empty is None:
            return prompt
        draws = [torch.rand((), generator=Generator().manual_seed(stream ^ DROP)) for stream in streams.tolist()]
        dropped = (torch.stack(draws) < self.dropout).to(prompt.device)
        return torch.where(dropped[:, None, None], self.empty, prompt)

    def measure(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Both losses of held-out clips, at noise levels that are the same at every validation of every run."""
        clips = torch.tensor(float(len(batch.keys)))
        denoise, align, _ = self.losses(batch, batch.prompt)
        return {"denoise": (denoise * clips, clips), "align": (align * clips, clips)}


class Joint(Student):
    """VideoJAM: optical flow, painted and encoded as a second video, is denoised beside the first (Sec. A.6)."""

    def __init__(self, backbone: VideoJAM, projectors: nn.ModuleList, pin: AlignPin, empty: Tensor | None):
        super().__init__(backbone, projectors, pin.model_copy(update={"method": NO_ALIGNMENT}), empty)
        self.lam, self.share = pin.method.lam, pin.method.flow_dropout

    def losses(self, batch: Batch, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The denoising losses of both halves, video and flow; no tokens are compared."""
        noised = self.backbone.noise(torch.cat([batch.z0, batch.target], 1), batch.streams)
        if self.training:
            noised = self.backbone.hide(noised, self.share, batch.streams)
        prediction, _ = self.backbone.predict(noised, prompt)
        with torch.autocast(batch.z0.device.type, enabled=False):
            halves = zip(self.backbone.halves(prediction), self.backbone.halves(noised.target), strict=True)
            return *(mse(*half) for half in halves), torch.zeros(())


def run(config: str, clips: list[str], latents: list[str], work: str, out: str, targets: list[str] = ()) -> None:
    """Train, then write transformer/ (stock format), log.jsonl and, where tokens are aligned, each projector and
    relations.safetensors; rows of manifest.Weights.
    """
    pin = AlignPin.load(config)
    if bool(targets) != (pin.method.target != "none"):
        what = "missing" if not targets else "given"
        raise Problem(f"--targets: {what}, and the method of {pin.run} has the target {pin.method.target!r}")
    accelerator = distributed.start(pin.machine, pin.align.precision)
    needed = {
        "train": partial(drawn, pin.seed, pin.align.steps, pin.align.batch),
        "heldout": lambda n: chain.from_iterable(loop.validation_groups(n, 1)),
    }
    train, heldout = (
        LatentClips(clips, latents, list(targets), split, pin.backbone.text_tokens, which)
        for split, which in needed.items()
    )
    grid = make_grid(pin.backbone, pin.encoder)
    empty = empty_prompt(pin, grid)
    joint = pin.method.loss == "joint"
    backbone = backbones.load(pin.backbone, grid, parts=("transformer",), joint=joint)
    backbone.checkpoint(pin.align.checkpointing)
    student = (Joint if joint else Student)(backbone, make_projectors(pin, grid, train), pin, empty)
    inputs = [*clips, *latents, *targets]
    place = checkpoint.folder(work, config, inputs)
    tokens = math.prod(grid.tokens) + pin.backbone.text_tokens
    plan = loop.Plan("align", f"{pin.run}-s{pin.seed}", pin.align, pin.seed, tokens)
    given = (student, loop.Data(train, heldout, collate), plan, accelerator, place, pin.model_dump(mode="json"))
    student.sharded = pin.align.sharding == "full" and accelerator.num_processes > 1
    before = relations(student, heldout, accelerator) if accelerator.is_main_process else {}
    if not accelerator.is_main_process:
        loop.fit(*given)
        return
    with manifest.making(out, manifest.Weights, pin=config, inputs=inputs) as made:
        outcome = loop.fit(*given)
        after = relations(student, heldout, accelerator)
        export(student, outcome, {"before": before, "after": after}, made, accelerator)
    checkpoint.prune(place, keep=1)


def collate(items: list[dict[str, Any]], streams: Tensor) -> Batch:
    """Rows of LatentClips as a batch."""
    z0, prompt = (torch.stack([item[name] for item in items]) for name in ("z0", "prompt"))
    target = torch.stack([item["target"] for item in items]) if "target" in items[0] else None
    return Batch([item["key"] for item in items], streams, z0, prompt, target)


def make_projectors(pin: AlignPin, grid: Grid, train: LatentClips) -> nn.ModuleList:
    """P_zeta at random for each aligned block, as wide as the targets: D_m for `motion`, D_v for `tokens`.

    None of them where no tokens are aligned.
    """
    if not train.targets:
        return nn.ModuleList()
    folder, row = any_target = next(iter(train.targets.values()))
    made_for = train.shards[folder / row.file].metadata.get("target")
    if made_for != pin.method.target:
        raise Problem(
            f"{folder / row.file}: holds the target {made_for!r}, and the method of {pin.run} has"
            f" {pin.method.target!r}; give the manifests of that target"
        )
    if pin.method.loss == "joint":
        return nn.ModuleList()
    width = train.row(any_target, "target").shape[-1]
    torch.manual_seed(pin.seed)
    sizes = grid, pin.backbone.width, pin.align.hidden, width, pin.align.projector
    return nn.ModuleList(Projector(*sizes) for _ in pin.align.layer)


def empty_prompt(pin: AlignPin, grid: Grid) -> Tensor | None:
    """States of the empty prompt [1, T, Dtext], for which the text encoder is loaded once; None without dropout."""
    if not pin.align.prompt_dropout:
        return None
    return backbones.load(pin.backbone, grid, parts=("text",)).embed([""]).float()


@torch.no_grad()
def relations(student: Student, heldout: LatentClips, accelerator: Accelerator) -> dict[str, Tensor]:
    """What Eq. 5-6 compare, of the first clip that validation sees: similarities of the target's and its own tokens.

    Both are [n, n]; its own, as projected from its first aligned block, are means over NOISES noise levels. Empty where
    nothing is aligned or held out, and under `sharding: full`, whose hooks outlive the training.
    """
    first = next(chain.from_iterable(loop.validation_groups(len(heldout), 1)), None)
    if first is None or not len(student.projectors) or student.sharded:
        return {}
    student.to(accelerator.device).eval()
    item, found = heldout[first], []
    for number in range(NOISES):
        batch = collate([item], streams(loop.VALIDATION_SEED, number, [item["key"]]))
        z0, prompt = batch.z0.to(accelerator.device), batch.prompt.to(accelerator.device)
        with accelerator.autocast():
            _, Ys = student.backbone.predict(student.backbone.noise(z0, batch.streams), prompt, student.layers)
        found.append(similarities(student.projectors[0](Ys[0].float())))  # in fp32, as the loss sees it
    return {"teacher": similarities(batch.target), "student": torch.stack(found).mean(0)}


def similarities(tokens: Tensor) -> Tensor:
    """Cosine similarities [n, n] of one clip's tokens [1, F, H, W, D]; of many every so many, RELATED at least."""
    unit = nn.functional.normalize(tokens.float().flatten(1, 3)[0], dim=-1, eps=1e-6).cpu()
    unit = unit[:: max(1, len(unit) // RELATED)]
    return unit @ unit.T


def export(
    student: Student,
    outcome: loop.Outcome,
    related: dict[str, dict[str, Tensor]],
    made: manifest.Making,
    accelerator: Accelerator,
) -> None:
    """What the rest of the chain reads."""
    folder = made.path.parent
    shutil.rmtree(folder / "transformer", ignore_errors=True)  # shards of an earlier, larger save
    student.backbone.save(folder / "transformer")
    shutil.copyfile(outcome.log, folder / "log.jsonl")
    files = {"transformer": "transformer", "log": "log.jsonl"}
    for layer, projector in zip(student.layers, student.projectors, strict=True):
        name = f"projector-{layer}"
        files[name] = f"{name}.safetensors"
        shards.write_tensors(folder / files[name], projector.state_dict(), {"step": str(outcome.step)})
    if related["after"]:
        files["relations"] = "relations.safetensors"
        found = {"teacher": related["after"]["teacher"]} | {when: of["student"] for when, of in related.items()}
        shards.write_tensors(folder / files["relations"], {name: one.half() for name, one in found.items()})
    for name, file in files.items():
        made.file(file)
        made.rows.append(manifest.Weights(name, file, outcome.step))
    made.notes["validation"] = outcome.metrics
    made.notes["processes"] = accelerator.num_processes
    made.notes["wandb"] = mirror.run_id(outcome.log.parent)
