"""`moalign card --config PIN --model FOLDER`: what one small model of resources/miniature can do, measured and shown.

Quality on clips of a collection that nothing learnt from, pictures, and README.md, the card itself; the numbers go
into card.json beside how the model was made. Weights and SHA256SUMS stay as they are.
"""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from torch import Generator, Tensor, nn

from moalign import backbones, device, manifest
from moalign.bench import gate, scores, tables
from moalign.bench import physics as judge
from moalign.clips import normalise, to_frames
from moalign.config import MiniaturePin
from moalign.manifest import Sample, Score
from moalign.progress import track
from moalign.stages import miniature
from moalign.teacher import raft, videomae
from moalign.world import captions, physics
from moalign.world.moved import moved

matplotlib.use("Agg")
from matplotlib import pyplot

CLIPS = 64  # held out, for every figure
LEARNT = 256  # more of them, that the reader of flow from tokens learns from
READS = 3000  # its steps
SHOWN = 16  # samples in the picture
COLUMNS = 2
EVERY = 4  # frames shown of a sample
SHIFTS = ((4.0, 0.0), (-3.0, 2.0), (0.5, -1.0))  # px, of pictures that move as a whole
BORDER = 12  # px that a shifted picture's error leaves out
CLOSE = 0.3  # px
METADATA = {"Software": None}  # no version in the pictures: equal numbers give equal bytes


def run(config: str, model: str, rules: str = "resources/judge.json") -> None:
    """Measure, then write card.json, README.md and the pictures into the model's folder."""
    pin = MiniaturePin.load(config)
    where = device.use(pin.machine)
    folder = Path(model)
    card = json.loads((folder / "card.json").read_text())
    world = held_out(pin)
    if pin.model == "raft":
        card["quality"] = flow_quality(pin, folder, world, where)
    elif pin.model == "videomae":
        card["quality"] = encoder_quality(pin, folder, world, where)
    else:
        card |= video_quality(pin, folder, world, where, judge.Rules.load(rules))
    plot_losses(card, folder / "loss.png")
    manifest.write_text(folder / "card.json", json.dumps(card, indent=1) + "\n")
    manifest.write_text(folder / "README.md", text(card))


def held_out(pin: MiniaturePin) -> miniature.World:
    """Right clips of a collection that no training has; more of them for the encoder, whose reader must learn."""
    clips = CLIPS + (LEARNT if pin.model == "videomae" else 0)
    row = pin.pretraining.model_copy(update={"collection": pin.pretraining.collection + 1, "wrong": 0.0})
    frames = [miniature.draw_clip(row, index) for index in range(clips)]
    chosen = [physics.choose(row.collection, index) for index in range(clips)]
    texts = [captions.caption(physics.attributes(*clip), clip[1]) for clip in chosen]
    return miniature.World(row, torch.from_numpy(np.stack(frames)), texts)


# --- optical flow --------------------------------------------------------------------------------------------------


@torch.no_grad()
def flow_quality(pin: MiniaturePin, folder: Path, world: miniature.World, where: torch.device) -> dict:
    """End-point errors in pixels of `flow.size`, beside OpenCV's DIS and zero flow."""
    size = pin.flow.size
    network = raft.load(pin.flow.model_copy(update={"weights": str(folder / Path(pin.flow.weights).name)})).to(where)

    def by_raft(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(a.split(8), b.split(8), strict=True)
        return torch.cat([network(x.to(where), y.to(where), pin.flow.updates)[-1].cpu() for x, y in pairs])

    ways = {"RAFT": by_raft, "DIS": by_dis, "zero flow": lambda a, b: torch.zeros(len(a), 2, *size)}
    rng = Generator().manual_seed(pin.pretraining.seed)
    pictures = miniature.real_pictures(size)
    pairs = [
        miniature.world_pair(normalise(world.frames[i, f : f + 2].numpy()), *world.flow(i, f), size)
        for i in range(CLIPS)
        for f in (2, 9)
    ]
    whole = [moved(picture, size, rng) for picture in pictures]
    errors = {"world": errors_of(pairs, ways), "moved pictures": errors_of(whole, ways)}
    shifted = [shift(picture, size, way) for picture in pictures for way in SHIFTS]
    away = distance(by_raft(*(torch.stack(part) for part in list(zip(*shifted, strict=True))[:2])), shifted)
    found = away[:, BORDER:-BORDER, BORDER:-BORDER].mean((1, 2))
    errors["shifted pictures"] = {
        "median": rounded(found.median()),
        f"share within {CLOSE} px": rounded((found < CLOSE).float().mean()),
    }
    return errors


def distance(flow: Tensor, pairs: list[miniature.Pair]) -> Tensor:
    """[N, h, w] px from the true flow."""
    return (flow - torch.stack([pair[2] for pair in pairs])).norm(dim=1)


def errors_of(pairs: list[miniature.Pair], ways: dict[str, Callable]) -> dict[str, dict[str, float]]:
    """Mean end-point error of each way: over all pixels that the second frame shows, and over those that move."""
    a, b, flow, seen = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    moving = (seen > 0) & (flow.norm(dim=1) > 0.5)
    found = {}
    for name, way in ways.items():
        away = distance(way(a, b), pairs)
        found[name] = {"all": rounded(away[seen > 0].mean()), "moving": rounded(away[moving].mean())}
    return found


def by_dis(a: Tensor, b: Tensor) -> Tensor:
    """OpenCV's dense inverse search, at its middle setting."""
    found = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def grey(x: Tensor) -> np.ndarray:
        frame = to_frames(x[:, None] / 2 + 0.5)[0]
        return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)

    flows = [found.calc(grey(x), grey(y), None) for x, y in zip(a, b, strict=True)]
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2)


def shift(picture: Tensor, size: tuple[int, int], way: tuple[float, float]) -> miniature.Pair:
    """A window of the picture and the same window moved, so that all of it moves by `way`."""
    top, left = ((side - n) // 2 for side, n in zip(picture.shape[1:], size, strict=True))
    matrix = np.float32([[1, 0, way[0]], [0, 1, way[1]]])
    image = picture.permute(1, 2, 0).numpy()
    other = cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    a, b = (
        torch.from_numpy(x).permute(2, 0, 1)[:, top : top + size[0], left : left + size[1]].clamp(-1, 1)
        for x in (image, other)
    )
    return a, b, torch.tensor(way).view(2, 1, 1).expand(-1, *size), torch.ones(size)


# --- the encoder ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def encoder_quality(pin: MiniaturePin, folder: Path, world: miniature.World, where: torch.device) -> dict:
    """How well a small network reads a token's flow from that token, beside a random encoder's tokens."""
    path = folder / Path(pin.encoder.weights).name
    trained = videomae.load(pin.encoder.model_copy(update={"weights": str(path)}))
    torch.manual_seed(pin.pretraining.seed)
    random = videomae.VideoMAE(pin.encoder).eval()
    truth = torch.stack([token_flow(world, index, pin) for index in range(len(world.frames))])  # [N, Fm, Hm, Wm, 2]
    rest = truth[:CLIPS]
    found = {"zero flow": flow_errors(torch.zeros_like(rest), rest)}
    for name, encoder in (("trained", trained), ("random", random)):
        batches = (miniature.pixels(part, where)[:, :, 1:] for part in world.frames.split(8))
        tokens = torch.cat([encoder.to(where)(batch).cpu() for batch in batches])
        found[f"flow read from {name} tokens"] = flow_errors(read_out(tokens, truth), rest)
    return found


def flow_errors(found: Tensor, truth: Tensor) -> dict[str, float]:
    """R2, and the end-point error in px where it moves. [..., 2] each."""
    away = found - truth
    moving = truth.norm(dim=-1) > 0.5
    r2 = 1 - away.square().sum() / (truth - truth.flatten(0, -2).mean(0)).square().sum()
    return {"R2": rounded(r2), "error where it moves, px": rounded(away.norm(dim=-1)[moving].mean())}


def token_flow(world: miniature.World, index: int, pin: MiniaturePin) -> Tensor:
    """Mean exact flow [Fm, Hm, Wm, 2] px per frame of the pixels behind each token."""
    tubelet, patch = pin.encoder.tubelet, pin.encoder.patch
    flows = torch.stack([world.flow(index, frame)[0] for frame in range(1, physics.FRAMES - 1)])
    flows = torch.cat([flows, flows[-1:]])[: (physics.FRAMES - 1) // tubelet * tubelet]
    pooled = torch.nn.functional.avg_pool3d(flows.transpose(0, 1)[None], (tubelet, patch, patch))[0]
    return pooled.permute(1, 2, 3, 0)


def read_out(tokens: Tensor, truth: Tensor) -> Tensor:
    """Flow [CLIPS, ..., 2] of the first clips, as a network of two hidden layers that learnt from the others reads it.

    One token at a time: what its neighbours know is hidden from it. tokens [N, ..., D]; truth [N, ..., 2].
    """
    X = (tokens - tokens[CLIPS:].flatten(0, -2).mean(0)) / (tokens[CLIPS:].flatten(0, -2).std(0) + 1e-6)
    A, B = X[CLIPS:].flatten(0, -2), truth[CLIPS:].flatten(0, -2)
    rng = Generator().manual_seed(0)
    torch.manual_seed(0)
    with torch.enable_grad():
        reader = nn.Sequential(nn.Linear(X.shape[-1], 256), nn.SiLU(), nn.Linear(256, 64), nn.SiLU(), nn.Linear(64, 2))
        optimiser = torch.optim.AdamW(reader.parameters(), weight_decay=0.01)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=READS)
        for _ in track(range(READS), "reader"):
            some = torch.randint(len(A), (1024,), generator=rng)
            optimiser.zero_grad()
            (reader(A[some]) - B[some]).abs().mean().backward()
            optimiser.step()
            rate.step()
    return reader(X[:CLIPS])


# --- the video models ----------------------------------------------------------------------------------------------


def video_quality(
    pin: MiniaturePin, folder: Path, world: miniature.World, where: torch.device, rules: judge.Rules
) -> dict:
    """Reconstruction error, what the judge makes of samples, the base gate; the picture samples.png, its prompts."""
    row = pin.backbones[pin.model].model_copy(update={"weights": str(folder)})
    backbone = backbones.load(row, device=where)
    x0 = miniature.pixels(world.frames, where)
    with torch.no_grad():
        again = torch.cat([backbone.vae.decode(backbone.encode(part)).sample.cpu() for part in x0.split(8)])
    samples = []
    for first in track(range(0, CLIPS, 8), "samples"):
        batch = range(first, min(first + 8, CLIPS))
        rngs = [Generator().manual_seed(index) for index in batch]
        videos = backbone.sample([world.captions[index] for index in batch], row.sampling, rngs)
        samples += [to_frames(one) for one in videos]
    real = list(world.frames.numpy())
    sets = {
        "samples": samples,
        "reconstructions": [to_frames(one / 2 + 0.5) for one in again],
        "real clips": real,
        "static": [np.repeat(frames[:1], len(frames), axis=0) for frames in samples],
    }
    rows = {name: ratings(videos, world.captions, rules) for name, videos in sets.items()}
    rated = {name: means(of) for name, of in rows.items()}
    keys = {(number, 0) for number in range(CLIPS)}
    passed = gate.judge_base("these prompts", "the model", rows["samples"], keys, rules.reference)
    picture(samples[:SHOWN], folder / "samples.png")
    error = rounded((again - x0.cpu()).abs().mean())
    return {
        "quality": {"reconstruction, mean absolute error in [-1, 1]": error, **rated},
        "gate": passed.text(),
        "prompts": world.captions[:SHOWN],
    }


def ratings(videos: list[np.ndarray], prompts: list[str], rules: judge.Rules) -> list[Score]:
    """The judge's rows of each video; the other prompt is one half the list away."""
    named, rows = [captions.named(prompt) for prompt in prompts], []
    for index, frames in enumerate(videos):
        sample = Sample(index, prompts[index], prompts[index], 0, index, "", physics.FPS, len(frames))
        other = named[(index + len(named) // 2) % len(named)]
        rows += judge.rate(sample, judge.see(frames, rules), named[index], other, rules)
    return rows


def means(rows: list[Score]) -> dict[str, float]:
    """Mean of each metric, under its name in the tables."""
    values: dict[str, list[float]] = {}
    for row in rows + scores.joint(rows):
        values.setdefault(tables.metric_of(row.metric).label, []).append(row.value)
    return {name: rounded(float(np.mean(of))) for name, of in values.items()}


def picture(videos: list[np.ndarray], path: Path, zoom: int = 2) -> None:
    """Samples in columns, a few frames of each side by side."""
    strips = [np.concatenate(list(frames[::EVERY]), axis=1) for frames in videos]
    strips = [np.pad(strip, ((0, 4), (0, 8), (0, 0)), constant_values=255) for strip in strips]
    rows = len(strips) // COLUMNS
    sheet = np.concatenate([np.concatenate(strips[c * rows : (c + 1) * rows]) for c in range(COLUMNS)], axis=1)
    pyplot.imsave(path, sheet.repeat(zoom, 0).repeat(zoom, 1), metadata=METADATA)


# --- the card ------------------------------------------------------------------------------------------------------


def plot_losses(card: dict, path: Path) -> None:
    """The loss curves, side by side."""
    curves = {name: part["loss"] for name, part in parts(card).items()}
    figure, axes = pyplot.subplots(1, len(curves), figsize=(4.5 * len(curves), 3), layout="constrained", squeeze=False)
    for axis, (name, values) in zip(axes[0], curves.items(), strict=True):
        steps = parts(card)[name]["steps"]
        axis.plot((np.arange(len(values)) + 0.5) * steps / len(values), values, color="#0072b2")
        axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
    figure.savefig(path, metadata=METADATA)
    pyplot.close(figure)


def parts(card: dict) -> dict[str, dict]:
    """The trainings of a model: one, or one of each of its parts."""
    return (
        {card["model"]: card}
        if "loss" in card
        else {k: v for k, v in card.items() if isinstance(v, dict) and "loss" in v}
    )


def text(card: dict) -> str:
    """README.md, from what card.json holds."""
    names = {
        "cogvideox": "CogVideoX, small",
        "wan": "Wan, small",
        "videomae": "VideoMAE, small",
        "raft": "RAFT-small",
    }
    lines = [f"# {names[card['model']]}", "", ROLES[card["model"]], "", "## How it was made", ""]
    lines += [f"- Data: {card['clips']} clips of the physics world, seed {card['seed']}."]
    for name, part in parts(card).items():
        lines.append(f"- {name}: {part['steps']} steps of {part['batch']}.")
    lines += [f"- {note}" for note in card.get("notes", [])]
    lines += [
        f"- Machine: {card['device']}, {card['seconds']} s. Made by `snakemake --profile local miniature_models`.",
        "",
        "![Loss curves](loss.png)",
        "",
        f"## What it can do, on {CLIPS} clips that it has not seen",
        "",
        *tabled(card["quality"]),
        "",
        *([f"{card['gate']}.", ""] if "gate" in card else []),
        "What else was tried: [docs/log.md](../../../docs/log.md). Hashes of the files: [SHA256SUMS](SHA256SUMS).",
    ]
    if "prompts" in card:
        lines += ["", "## Samples", "", f"The first {SHOWN}, not chosen, left column first:", ""]
        lines += ["![Samples](samples.png)", ""]
        lines += [f"{number}. {prompt}" for number, prompt in enumerate(card["prompts"], 1)]
    return "\n".join(lines) + "\n"


ROLES = {
    "cogvideox": "Stands for CogVideoX-2B in the miniature: stock diffusers classes, v-prediction, zero terminal SNR.\n"
    "Most of the clips that it learnt from have wrong physics, so that there is something to put right.\n"
    "SA, PC and Joint are the judge's ([docs/judge.md](../../../docs/judge.md)).",
    "wan": "Stands for Wan2.1 in the miniature, as the writer of synthetic clips and as the second backbone.\n"
    "SA, PC and Joint are the judge's ([docs/judge.md](../../../docs/judge.md)).",
    "videomae": "Stands for VideoMAEv2-B in the miniature; the checkpoint has its key names.",
    "raft": "Stands for RAFT-large in the miniature: torchvision's raft_small. Errors below are in pixels\n"
    "of 128 x 128 frames, mean length of the difference, beside OpenCV's DIS and zero flow. Moving is where the true\n"
    "flow is longer than half a pixel; shifted pictures are real ones that move as a whole.",
}


def tabled(quality: dict) -> list[str]:
    """Nested numbers as Markdown: plain numbers as a list, then a table for each group of rows with equal columns."""
    lines = [f"- {name}: {value}" for name, value in quality.items() if not isinstance(value, dict)]
    groups = {name: value for name, value in quality.items() if isinstance(value, dict)}
    rows = {
        f"{name}, {inner}" if isinstance(cells, dict) else name: cells if isinstance(cells, dict) else value
        for name, value in groups.items()
        for inner, cells in value.items()
    }
    heads = None
    for name, cells in rows.items():
        if list(cells) != heads:
            heads = list(cells)
            lines += [*([""] if lines else []), "| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        lines.append(f"| {name} | " + " | ".join(str(value) for value in cells.values()) + " |")
    return lines


def rounded(value: float | Tensor) -> float:
    """Three decimals."""
    return round(float(value), 3)
