"""Is M disentangled, as Sec. 3.2 says? What a linear map reads from tokens: velocity, and appearance.

    moalign probe --config results/S/pins/teacher.yaml --clips results/S/clips/*/*.jsonl --flow results/S/flow/*/*.jsonl
                  --teacher results/S/teacher/manifest.jsonl --out FILE.json
                  [--align results/S/pins/align/RUN-sSEED.yaml --latents results/S/latents/BACKBONE/*/*.jsonl
                   --runs RUN=results/S/runs/RUN/sSEED/manifest.jsonl]

Of the held-out clips that validation looks at. Velocity is the flow O, appearance the mean colour and the contrast,
over a token's own pixels. Ridge regression, its strength chosen inside the training folds; R2 is of clips that the
regression has not seen, as one number over all of them, its interval from drawing clips again. Beside S and M stand a
head M_psi with random weights, which tells what its training is worth, and, with the pin of a run, tokens of the block
that it aligns, in the base and in the runs given. Those see noised latents: they are compared with each other and not
with S.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from moalign import backbones, device, manifest
from moalign.clips import FlowClips, LatentClips, streams
from moalign.config import AlignPin, TeacherPin, make_grid
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.progress import track
from moalign.teacher import motion, raft, videomae
from moalign.teacher.targets import TARGETS
from moalign.train import loop

PLACES = 128  # tokens of a clip that are looked at, drawn once
FOLDS = 5  # of clips
ALPHAS = np.logspace(-2, 5, 8)
DRAWS = 2000
ASKED = {"velocity": slice(0, 2), "appearance": slice(2, 6)}  # columns of `answers`
Reader = Callable[[int, Tensor], Tensor]
"""Index of a held-out clip and its x0 [1, 3, F, H, W] -> tokens [Fm, Hm, Wm, D]."""


@torch.no_grad()
def run(
    config: str,
    clips: list[str],
    flow: list[str],
    teacher: str,
    out: str,
    align: str | None = None,
    latents: list[str] = (),
    runs: dict[str, str] | None = None,
) -> None:
    """Write R2 of every kind of token, with its interval, as JSON."""
    pin = TeacherPin.load(config)
    if bool(latents) != bool(align) or (runs and not align):
        raise Problem("--align, --latents: give both, a run's pin and its backbone's latents, to look at its block")
    where, grid = device.use(pin.machine), make_grid(pin.backbone, pin.encoder)
    seen = FlowClips(clips, flow, "heldout", pin.backbone.frames, pin.backbone.fps, pin.backbone.size)
    chosen = [index for (index,) in loop.validation_groups(len(seen), 1)]
    if len(chosen) < FOLDS:
        raise Problem(f"{clips[0]}: {len(chosen)} held-out clips in the manifests given; {FOLDS} are needed")
    readers = of_teacher(pin, teacher, grid, where)
    if align:
        readers |= of_blocks(AlignPin.load(align), clips, latents, runs or {}, grid, where)
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in readers}
    wanted = []
    for index in track(chosen, "clips read"):
        item = seen[index]
        x0 = item["x0"][None].to(where)
        asked = answers(item["x0"], raft.unpack(item["flow"], pin.flow.size), grid)
        places = np.random.default_rng(index).permutation(len(asked))[:PLACES]
        wanted.append(asked[places])
        for name, read in readers.items():
            tokens[name].append(read(index, x0)[:-1].flatten(0, 2).float().cpu().numpy()[places])
    rows = {
        name: {what: readout(of, [one[:, columns] for one in wanted]) for what, columns in ASKED.items()}
        for name, of in track(tokens.items(), "read-outs", total=len(tokens))
    }
    found = {"clips": len(chosen), "tokens of each": len(wanted[0]), "code": manifest.code_version(), "R2": rows}
    manifest.write_text(out, json.dumps(found, indent=1) + "\n")
    for name, of in rows.items():
        told = (f"{what} {r2:.3f} [{low:.3f}, {high:.3f}]" for what, (r2, low, high) in of.items())
        print(f"{name:24} {'  '.join(told)}")


# --- what is read -----------------------------------------------------------------------------------------------------


def of_teacher(pin: TeacherPin, teacher: str, grid: Grid, where: torch.device) -> dict[str, Reader]:
    """S, M, and M of a head that learnt nothing."""
    encoder = videomae.load(pin.encoder).to(where)
    head = motion.load(manifest.read(teacher, manifest.Weights)).to(where)
    torch.manual_seed(pin.teacher.seed)
    untrained = motion.MotionHead(pin.encoder.width, pin.teacher.channels).to(where)
    made = {
        "S": TARGETS["tokens"](encoder, None, grid),
        "M": TARGETS["motion"](encoder, head, grid),
        "M, random head": TARGETS["motion"](encoder, untrained, grid),
    }
    return {name: partial(lambda target, _, x0: target(x0)[0], target) for name, target in made.items()}


def of_blocks(
    pin: AlignPin,
    clips: Sequence[str],
    latents: Sequence[str],
    runs: dict[str, str],
    grid: Grid,
    where: torch.device,
) -> dict[str, Reader]:
    """Tokens of the first block that the pin's run aligns, of the base and of the runs; a clip has one noise level."""
    if make_grid(pin.backbone, pin.encoder) != grid:
        raise Problem(f"--align: {pin.run} sees other clips than stage 1 does; take a run of stage 1's backbone")
    layer = pin.align.layer[0]
    given = list(clips), list(latents), [], "heldout", pin.backbone.text_tokens
    held = LatentClips(*given, lambda n: chain.from_iterable(loop.validation_groups(n, 1)))
    folders: dict[str, Path | None] = {f"block {layer}, as it came": None}
    for name, path in runs.items():
        folders[f"block {layer}, {name}"] = manifest.read(path, manifest.Weights).locate("transformer")

    def read(backbone: backbones.TextToVideo, index: int, x0: Tensor) -> Tensor:
        item = held[index]
        noised = backbone.noise(item["z0"][None].to(where), streams(loop.VALIDATION_SEED, 0, [item["key"]]))
        _, (Y,) = backbone.predict(noised, item["prompt"][None].to(where), (layer,))
        return to_motion(Y[0], grid)

    loaded = {
        name: backbones.load(pin.backbone, grid, where, parts=("transformer",), transformer=folder)
        for name, folder in folders.items()
    }
    return {name: partial(read, backbone) for name, backbone in loaded.items()}


def to_motion(Y: Tensor, grid: Grid) -> Tensor:
    """Video tokens [Ft, Ht, Wt, D] on the grid of M: frame 0's left out, repeated in time, averaged in space."""
    Fm, Hm, Wm = grid.motion
    Y = Y[1:, : Hm * grid.shrink, : Wm * grid.shrink].permute(0, 3, 1, 2).float()
    return avg_pool2d(Y, grid.shrink).permute(0, 2, 3, 1).repeat_interleave(grid.upsample, 0)[:Fm]


def answers(x0: Tensor, O: Tensor, grid: Grid) -> np.ndarray:
    """Of x0 [3, F, H, W] and O [Fm-1, 2, h, w], by token: u, v in pixels; red, green, blue, contrast in 0..1.

    [(Fm-1) Hm Wm, 6]; contrast is the standard deviation of luma.
    """
    Fm, Hm, Wm = grid.motion
    height, width = grid.crop
    frames = (x0[:, 1:, :height, :width] / 2 + 0.5).transpose(0, 1)  # [F-1, 3, h, w]
    luma = (frames * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    pooled = adaptive_avg_pool2d(torch.cat([frames, luma, luma.square()], 1), (Hm, Wm))
    pooled = pooled.unflatten(0, (Fm, -1)).mean(1)  # a token's frames
    colour, mean, square = pooled.split((3, 1, 1), 1)
    contrast = (square - mean.square()).clamp(min=0).sqrt()
    velocity = adaptive_avg_pool2d(O, (Hm, Wm))
    both = torch.cat([velocity, colour[:-1], contrast[:-1]], 1)
    return both.permute(0, 2, 3, 1).flatten(0, 2).numpy()


# --- what can be read from it -----------------------------------------------------------------------------------------


def readout(tokens: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """R2 of clips that the regression has not seen, low and high; tokens [n, D] and answers [n, k], clip by clip.

    Columns of the answers weigh alike, whatever their units.
    """
    X, y = np.concatenate(tokens), np.concatenate(wanted)
    y = y / np.maximum(y.std(0), 1e-9)
    clip = np.repeat(np.arange(len(tokens)), [len(one) for one in tokens])
    error, spread = np.zeros(len(tokens)), np.zeros(len(tokens))
    for train, test in GroupKFold(FOLDS).split(X, y, clip):
        model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(X[train], y[train])
        np.add.at(error, clip[test], np.square(model.predict(X[test]).reshape(len(test), -1) - y[test]).sum(1))
        np.add.at(spread, clip[test], np.square(y[train].mean(0) - y[test]).sum(1))
    times = np.random.default_rng(0).multinomial(len(error), np.full(len(error), 1 / len(error)), DRAWS)
    low, high = np.percentile(1 - (times @ error) / (times @ spread), [2.5, 97.5])
    return float(1 - error.sum() / spread.sum()), float(low), float(high)
