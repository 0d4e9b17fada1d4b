"""The small models of resources/miniature, trained from nothing on the physics world, in the hub's layout.

`moalign miniature --config PIN --work DIR --out FOLDER [--start MODEL]`, one model a call. A killed training goes on
from its last checkpoint; numbers depend on (seed, step) alone. The models are what the miniature scale downloads, so to
say: only stages 1 and 2 follow the paper, their pretraining may use any recipe. Beside the weights lie card.json and
SHA256SUMS.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.models import optical_flow

from moalign import backbones, config, device, manifest, shards, video
from moalign.backbones import miniature as blueprint
from moalign.backbones.base import TextToVideo
from moalign.clips import normalise, to_frames
from moalign.config import MiniaturePin
from moalign.interfaces import Noised
from moalign.progress import say, track
from moalign.teacher import flowvideo, videomae
from moalign.world import captions, corrupt, footage, physics, render
from moalign.world.moved import moved

SAVE_SECONDS = 60.0  # between checkpoints
EVERY = 15  # of the real footage's frames one is used
RAFT_UPDATES = 5
MOVED = 24  # of 255: how much a pixel changes from frame to frame where something moves
COLOURED = 0.1  # of the VAE's pieces: optical flow as a picture, which VideoJAM has it encode


@dataclass
class World:
    """Clips to learn from."""

    row: config.Pretraining
    frames: Tensor  # uint8 [N, F, 64, 64, 3]
    captions: list[str]

    def flow_frames(self, index: int) -> Tensor:
        """Exact flow of a clip as pictures, the last one twice: uint8 [F, 64, 64, 3]."""
        simulation = simulate(self.row, index)
        F = self.frames.shape[1]
        flows = [render.flow(simulation, first, first + 1)[0] for first in range(F - 1)]
        vectors = torch.from_numpy(np.stack([*flows, flows[-1]])).float().permute(0, 3, 1, 2)
        return torch.from_numpy(to_frames(flowvideo.picture(vectors).transpose(0, 1) / 2 + 0.5))

    def flow(self, index: int, first: int) -> tuple[Tensor, Tensor]:
        """Exact flow of a clip from frame `first` to the next, [2, 64, 64], and where that is seen, [64, 64]."""
        vectors, seen = render.flow(simulate(self.row, index), first, first + 1)
        return torch.from_numpy(vectors).permute(2, 0, 1).float(), torch.from_numpy(seen).float()


def run(config: str, work: str, out: str, start: str | None = None) -> None:
    """Train the pin's model and write it to `out`.

    start: a video model made before, of which only the VAE's decoder learns on: its latents, and so its transformer,
    stay as they are.
    """
    pin = MiniaturePin.load(config)
    where = device.use(pin.machine)
    work_folder = Path(work)
    work_folder.mkdir(parents=True, exist_ok=True)
    world = make_world(pin.pretraining, work_folder.parent / "world", pin.machine.threads)
    started = time.monotonic()
    torch.manual_seed(pin.pretraining.seed)
    make = {"cogvideox": make_backbone, "wan": make_backbone, "videomae": make_encoder, "raft": make_raft}[pin.model]
    card = (
        continue_decoder(pin, world, work_folder, Path(out), Path(start), where)
        if start
        else (
            {"model": pin.model, "seed": pin.pretraining.seed, "clips": pin.pretraining.clips}
            | make(pin, world, work_folder, Path(out), where)
        )
    )
    made = {"device": str(where), "threads": pin.machine.threads, "seconds": round(time.monotonic() - started)}
    card = card | {"decoder": card["decoder"] | made} if start else card | made
    manifest.write_text(Path(out) / "card.json", json.dumps(card, indent=1) + "\n")
    blueprint.write_sums(out)


def make_world(row: config.Pretraining, folder: Path, processes: int) -> World:
    """Render the clips, `wrong` of them twins with wrong physics, or read those of an earlier call."""
    file = folder / f"{row.collection}-{row.seed}-{row.clips}-{row.wrong}.safetensors"
    if not file.exists():
        with ProcessPoolExecutor(processes) as pool:
            drawn = pool.map(partial(draw_clip, row), range(row.clips), chunksize=50)
            frames = list(track(drawn, "world", total=row.clips))
        shards.write_tensors(file, {"frames": torch.from_numpy(np.stack(frames))})
    chosen = [physics.choose(row.collection, index) for index in range(row.clips)]
    texts = [captions.caption(physics.attributes(*clip), clip[1]) for clip in chosen]
    return World(row, load_file(file)["frames"], texts)


def simulate(row: config.Pretraining, index: int) -> physics.Simulation:
    """A clip: as physics has it, or a twin with wrong physics."""
    scene, seed = physics.choose(row.collection, index)
    right = physics.simulate(scene, seed)
    rng = np.random.default_rng([row.seed, index])
    if rng.random() < row.wrong:
        return corrupt.twin(scene, seed, str(rng.choice(corrupt.kinds(right))))
    return right


def draw_clip(row: config.Pretraining, index: int) -> np.ndarray:
    """A clip's frames, uint8 [F, 64, 64, 3]."""
    return render.draw(simulate(row, index))


class Batches(Dataset):
    """Step -> its batch: what `draw` takes from a generator that the step seeds, on the CPU."""

    def __init__(self, draw: Callable[[Generator], tuple], seed: int, first: int, last: int):
        self.draw, self.seed, self.steps = draw, seed, range(first, last)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> tuple:
        return self.draw(Generator().manual_seed(self.seed * 1_000_003 + self.steps[number]))


def fit(
    what: str,
    module: nn.Module,
    row: config.Fit,
    draw: Callable[[Generator], tuple],
    loss: Callable[..., Tensor],
    work: Path,
    pin: MiniaturePin,
) -> list[float]:
    """AdamW, warm-up and cosine decay, on `loss(*draw(rng))`. With a GPU, processes draw ahead of it.

    Returns the loss of every step. Resumes from work/{what}.pt.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=row.lr, betas=(0.9, 0.99), weight_decay=0.01)
    warmup = max(1, row.steps // 20)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / row.steps) + 1e-3)
    )
    file, losses = work / f"{what}.pt", []
    if file.exists():
        state = torch.load(file, weights_only=True)
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        rate.load_state_dict(state["rate"])
        losses = state["losses"]
        say(f"{what}: goes on from step {len(losses)}")
    module.train()
    batches = Batches(draw, pin.pretraining.seed, len(losses), row.steps)
    workers = pin.machine.threads if pin.machine.device == "cuda" else 0
    loader = DataLoader(batches, batch_size=None, num_workers=workers, collate_fn=as_drawn)
    new, saved = [], time.monotonic()  # losses stay on the device between checkpoints, so that it never waits
    for batch in track(loader, what, total=row.steps, done=len(losses)):
        value = loss(*batch)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        rate.step()
        new.append(value.detach())
        if time.monotonic() - saved > SAVE_SECONDS or len(losses) + len(new) == row.steps:
            losses += torch.stack(new).tolist()
            say(f"{what}: step {len(losses)}, loss {np.mean(losses[-len(new) :]):.4f}")
            with manifest.replacing(file) as temporary:
                state = {"module": module.state_dict(), "optimiser": optimiser.state_dict()}
                torch.save(state | {"rate": rate.state_dict(), "losses": losses}, temporary)
            new, saved = [], time.monotonic()
    return losses


def as_drawn(batch: tuple) -> tuple:
    """No collation: a draw is a batch already."""
    return batch


def pixels(frames: Tensor, where: torch.device) -> Tensor:
    """uint8 [B, F, H, W, 3] -> [B, 3, F, H, W] in [-1, 1] on a device."""
    return frames.to(where).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1).contiguous()


def curve(losses: list[float], points: int = 50) -> list[float]:
    """A loss curve as means over equal spans of steps."""
    return [round(float(span.mean()), 5) for span in np.array_split(np.array(losses), min(points, len(losses)))]


# --- the video models ----------------------------------------------------------------------------------------------


def make_backbone(pin: MiniaturePin, world: World, work: Path, out: Path, where: torch.device) -> dict:
    """VAE first, then transformer and text encoder together on its latents."""
    row, recipe = pin.backbones[pin.model], pin.pretraining
    base = blueprint.pipeline(row.family, recipe.seed, world.captions)
    vae, own = base.vae.to(where), getattr(recipe, f"{pin.model}_vae")
    vae_losses = fit(
        "vae", vae, own, partial(pieces, world, own), lambda *drawn: vae_loss(vae, *drawn, where), work, pin
    )
    vae.eval()
    means = posterior_means(vae, world, where)
    calibrate(vae, means)
    error = reconstruction_error(vae, world, where)
    base.save_pretrained(str(out))  # the backbone below reads the VAE's scale from its config
    backbone = backbones.load(row.model_copy(update={"weights": str(out)}), device=where, parts=("transformer", "text"))
    backbone.text_encoder.requires_grad_(True)
    both = nn.ModuleDict({"transformer": backbone.transformer, "text": backbone.text_encoder})
    settings = getattr(recipe, pin.model)
    losses = fit(
        pin.model,
        both,
        settings,
        partial(noised, backbone, world, means, recipe.prompt_dropout, settings.batch),
        partial(denoising_loss, backbone),
        work,
        pin,
    )
    backbone.transformer.register_to_config(_name_or_path=row.weights)  # not the folder that it was made in
    backbone.save(out / "transformer")
    backbone.text_encoder.save_pretrained(str(out / "text_encoder"))
    decoder = {"decoder": train_decoder(pin, world, work, out, vae, where)} if pin.model == "cogvideox" else {}
    return {
        "vae": {"steps": own.steps, "batch": own.batch, "l1": error, "loss": curve(vae_losses)},
        "transformer": {"steps": settings.steps, "batch": settings.batch, "wrong": recipe.wrong, "loss": curve(losses)},
        **decoder,
    }


def continue_decoder(pin: MiniaturePin, world: World, work: Path, out: Path, start: Path, where: torch.device) -> dict:
    """Train the decoder of the model in `start` some more on its encoder's latents; the rest is copied."""
    shutil.copytree(start, out, dirs_exist_ok=True)
    vae = type(blueprint.pipeline(pin.backbones[pin.model].family).vae).from_pretrained(start, subfolder="vae")
    card = json.loads((start / "card.json").read_text())
    return card | {"decoder": train_decoder(pin, world, work, out, vae.to(where), where)}


def train_decoder(pin: MiniaturePin, world: World, work: Path, out: Path, vae: nn.Module, where: torch.device) -> dict:
    """The VAE's decoder alone, on whole clips, for the time that its transformer did not need."""
    row = pin.pretraining.cogvideox_decoder
    vae.encoder.requires_grad_(False)
    losses = fit(
        "decoder", vae, row, partial(pieces, world, row), lambda *drawn: vae_loss(vae, *drawn, where), work, pin
    )
    vae.eval()
    error = reconstruction_error(vae, world, where)
    vae.save_pretrained(str(out / "vae"))
    return {"steps": row.steps, "batch": row.batch, "l1": error, "loss": curve(losses)}


def pieces(world: World, row: config.Autoencode, rng: Generator) -> tuple[Tensor, int]:
    """Random pieces of clips, uint8 [B, *row.crop, 3], half of them around something that moves; a seed for noise."""
    found = []
    F, H, W = row.crop
    for index in torch.randint(len(world.frames), (row.batch,), generator=rng).tolist():
        start = int(torch.randint(world.frames.shape[1] - F + 1, (), generator=rng))
        top, left = (int(torch.randint(64 - side + 1, (), generator=rng)) for side in (H, W))
        if torch.rand((), generator=rng) < 0.5:
            before, after = world.frames[index, start : start + 2].int()
            moving = ((after - before).abs().amax(-1) > MOVED).nonzero()
            if len(moving):
                y, x = moving[int(torch.randint(len(moving), (), generator=rng))].tolist()
                top, left = min(max(0, y - H // 2), 64 - H), min(max(0, x - W // 2), 64 - W)
        coloured = torch.rand((), generator=rng) < COLOURED
        frames = world.flow_frames(index) if coloured else world.frames[index]
        found.append(frames[start : start + F, top : top + H, left : left + W])
    return torch.stack(found), int(torch.randint(2**62, (), generator=rng))


def vae_loss(vae: nn.Module, frames: Tensor, seed: int, where: torch.device) -> Tensor:
    """Absolute error, what moves weighing more, and a divergence just large enough to keep the latents bounded."""
    x0 = pixels(frames, where)
    moving = (x0 - x0.median(dim=2, keepdim=True).values).abs().amax(1, keepdim=True) > 0.2
    weight = 1 + 5.0 * moving
    posterior = vae.encode(x0).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=Generator().manual_seed(seed))
    z = posterior.mean + posterior.std * noise.to(x0)
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    error = (vae.decode(z).sample - x0).abs()
    return (weight * error).mean() / weight.mean() + 1e-4 * divergence


@torch.no_grad()
def posterior_means(vae: nn.Module, world: World, where: torch.device) -> Tensor:
    """Latents of every clip, [N, C, Fl, Hl, Wl]."""
    spans = world.frames.split(32)
    return torch.cat([vae.encode(pixels(span, where)).latent_dist.mean.cpu() for span in track(spans, "latents")])


@torch.no_grad()
def reconstruction_error(vae: nn.Module, world: World, where: torch.device) -> float:
    """Mean absolute error of whole clips in [-1, 1], 32 of them."""
    x0 = pixels(world.frames[:32], where)
    found = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x0.split(8)])
    return round(functional.l1_loss(found, x0).item(), 5)


def calibrate(vae: nn.Module, means: Tensor) -> None:
    """Write the latents' scale into the VAE's config, so that the diffusion sees unit variance."""
    if "scaling_factor" in vae.config:
        vae.register_to_config(scaling_factor=round(1 / means.std().item(), 5))
    else:
        channels = means.transpose(0, 1).flatten(1)
        mean, std = channels.mean(1).tolist(), channels.std(1).tolist()
        vae.register_to_config(latents_mean=[round(m, 5) for m in mean], latents_std=[round(s, 5) for s in std])


def noised(
    backbone: TextToVideo, world: World, means: Tensor, dropout: float, batch: int, rng: Generator
) -> tuple[Noised, list[str]]:
    """Noised cached latents of random clips, and their prompts, some left empty."""
    index = torch.randint(len(means), (batch,), generator=rng)
    drop = torch.rand(batch, generator=rng) < dropout
    streams = torch.randint(2**62, (batch,), generator=rng)
    prompts = ["" if gone else world.captions[i] for i, gone in zip(index.tolist(), drop.tolist(), strict=True)]
    return backbone.noise(means[index], streams), prompts


def denoising_loss(backbone: TextToVideo, drawn: Noised, prompts: list[str]) -> Tensor:
    """The backbone's own objective."""
    where = backbone.transformer.device
    drawn = Noised(drawn.z_t.to(where), drawn.t.to(where), drawn.target.to(where))
    prediction, _ = backbone.predict(drawn, backbone.embed(prompts))
    return functional.mse_loss(prediction, drawn.target)


# --- the encoder and the flow model ----------------------------------------------------------------------------------


class MaskedAutoencoder(nn.Module):
    """The encoder, a token for what is hidden, and a linear read-out of the hidden pixels."""

    def __init__(self, encoder: videomae.VideoMAE, row: config.Encoder):
        super().__init__()
        self.encoder = encoder
        self.hidden = nn.Parameter(torch.zeros(row.width))
        self.pixels = nn.Linear(row.width, 3 * row.tubelet * row.patch**2)
        self.cube = (row.tubelet, row.patch)

    def loss(self, frames: Tensor, hide: Tensor) -> Tensor:
        """Mean squared error of the hidden tubelets, each normalised. frames [B, 3, F, H, W]; hide [B, Fm, Hm, Wm]."""
        tubelet, patch = self.cube
        X, grid = self.encoder.embed(frames)
        X = torch.where(hide.flatten(1)[..., None], self.hidden + self.encoder.positions(grid), X)
        for block in self.encoder.blocks:
            X = block(X)
        found = self.pixels(X)
        cubes = frames.unfold(2, tubelet, tubelet).unfold(3, patch, patch).unfold(4, patch, patch)
        cubes = cubes.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)  # [B, N, 3 * tubelet * patch^2]
        cubes = (cubes - cubes.mean(-1, keepdim=True)) / (cubes.std(-1, keepdim=True) + 0.02)
        return functional.mse_loss(found[hide.flatten(1)], cubes[hide.flatten(1)])


def make_encoder(pin: MiniaturePin, world: World, work: Path, out: Path, where: torch.device) -> dict:
    """Masked autoencoding: fill in what is hidden behind tubes through the whole clip."""
    recipe, settings = pin.pretraining, pin.pretraining.videomae
    model = MaskedAutoencoder(videomae.VideoMAE(pin.encoder), pin.encoder).to(where)

    def draw(rng: Generator) -> tuple[Tensor, Tensor]:
        frames = world.frames[torch.randint(len(world.frames), (settings.batch,), generator=rng)][:, 1:]
        F, H, W = frames.shape[1] // pin.encoder.tubelet, *(side // pin.encoder.patch for side in frames.shape[2:4])
        hide = torch.rand(settings.batch, 1, H, W, generator=rng) < recipe.mask
        return frames, hide.expand(-1, F, -1, -1)

    def loss(frames: Tensor, hide: Tensor) -> Tensor:
        return model.loss(pixels(frames, where), hide.to(where))

    losses = fit("videomae", model, settings, draw, loss, work, pin)
    out.mkdir(parents=True, exist_ok=True)
    videomae.save(model.encoder.cpu(), out / Path(pin.encoder.weights).name)
    return {"steps": settings.steps, "batch": settings.batch, "mask": recipe.mask, "loss": curve(losses)}


def make_raft(pin: MiniaturePin, world: World, work: Path, out: Path, where: torch.device) -> dict:
    """RAFT on exact flow, every update's estimate weighed: half world, half pictures moved as a whole."""
    settings, size = pin.pretraining.raft, pin.flow.size
    model = getattr(optical_flow, pin.flow.model)(weights=None).to(where)
    pictures = real_pictures(size)

    def draw(rng: Generator) -> tuple[Tensor, ...]:
        pairs = [random_pair(world, pictures, size, number % 2 == 1, rng) for number in range(settings.batch)]
        return tuple(torch.stack(parts) for parts in zip(*pairs, strict=True))

    def loss(*drawn: Tensor) -> Tensor:
        a, b, flow, seen = (part.to(where) for part in drawn)
        estimates = model(a, b, num_flow_updates=RAFT_UPDATES)
        weigh = 1 + 4 * (flow.abs().amax(1, keepdim=True) > 0.5)  # few of the world's pixels move
        weigh = weigh * seen[:, None]
        errors = [(weigh * (estimate - flow).abs()).sum() / weigh.sum() / 2 for estimate in estimates]
        return sum(0.8 ** (len(errors) - 1 - number) * error for number, error in enumerate(errors))

    losses = fit("raft", model, settings, draw, loss, work, pin)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model.cpu().state_dict(), out / Path(pin.flow.weights).name)
    return {"steps": settings.steps, "batch": settings.batch, "loss": curve(losses)}


Pair = tuple[Tensor, Tensor, Tensor, Tensor]  # frames a, b [3, h, w] in [-1, 1]; flow [2, h, w]; seen [h, w]


def random_pair(world: World, pictures: list[Tensor], size: tuple[int, int], whole: bool, rng: Generator) -> Pair:
    """Two frames of a clip of the world; or, `whole`, a picture that moves as one, real or of the world."""
    index, first = int(torch.randint(len(world.frames), (), generator=rng)), None
    if not whole:
        first = int(torch.randint(physics.FRAMES - 1, (), generator=rng))
        return world_pair(normalise(world.frames[index, first : first + 2].numpy()), *world.flow(index, first), size)
    picture = pictures[int(torch.randint(len(pictures), (), generator=rng))]
    if torch.rand((), generator=rng) < 0.5:
        frame = normalise(world.frames[index, :1].numpy()).transpose(0, 1)
        picture = functional.interpolate(frame, scale_factor=2.5, mode="bicubic")[0].clamp(-1, 1)
    return moved(picture, size, rng)


def world_pair(frames: Tensor, flow: Tensor, seen: Tensor, size: tuple[int, int]) -> Pair:
    """Two frames [3, 2, 64, 64] and their exact flow, brought to another size."""
    a, b = functional.interpolate(frames.transpose(0, 1), size, mode="bilinear")
    scale = torch.tensor([size[1] / physics.SIDE, size[0] / physics.SIDE]).view(2, 1, 1)
    flow = functional.interpolate(flow[None], size, mode="nearest")[0] * scale
    return a, b, flow, functional.interpolate(seen[None, None], size, mode="nearest")[0, 0]


def real_pictures(size: tuple[int, int]) -> list[Tensor]:
    """Some frames of the real footage, [3, H, W] in [-1, 1], somewhat larger than `size`."""
    found = []
    for path in footage.find().values():
        frames = video.read(path, list(range(0, video.probe(path).frames, EVERY)))
        found += [normalise(frame[None])[:, 0] for frame in video.resize(frames, 16 * math.ceil(1.4 * max(size) / 16))]
    return found
