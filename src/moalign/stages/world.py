"""One clip of the miniature world, to look at.

    moalign world --scene throw --seed 7 --out clip.mp4

writes clip.mp4, clip.flow.png (frames above their exact flow) and clip.states.png (places, speeds, energy, contacts).
"""

from pathlib import Path

import flow_vis
import matplotlib
import numpy as np

from moalign import manifest, video
from moalign.progress import say
from moalign.world import captions, physics, render
from moalign.world.physics import FPS, FRAMES, Simulation

matplotlib.use("Agg")
from matplotlib import pyplot

HIDDEN = (128, 128, 128)  # of flow pictures: pixels that the next frame does not show
METADATA = {"Software": None}  # no version in the pictures: equal clips give equal bytes


def run(scene: str, seed: int, out: str) -> None:
    """Write the clip of (scene, seed) and its two pictures."""
    path = Path(out)
    simulation = physics.simulate(scene, seed)
    frames = render.draw(simulation)
    with manifest.disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        video.write(path, frames, FPS)
        pyplot.imsave(path.with_suffix(".flow.png"), flow_picture(simulation, frames), metadata=METADATA)
        figure = plot_states(simulation)
        figure.savefig(path.with_suffix(".states.png"), metadata=METADATA)
        pyplot.close(figure)
    say(f"{path}: {captions.caption(simulation.attributes, seed)}")


def flow_picture(simulation: Simulation, frames: np.ndarray, every: int = 2, zoom: int = 3) -> np.ndarray:
    """Frames, and below each its flow to the next: hue is direction, strength is speed, grey is hidden in the next."""
    numbers = range(0, FRAMES - 1, every)
    flows = [render.flow(simulation, number, number + 1) for number in numbers]
    strongest = max(float(np.linalg.norm(vectors, axis=-1).max()) for vectors, _ in flows) or 1.0
    columns = []
    for number, (vectors, seen) in zip(numbers, flows, strict=True):
        scaled = vectors / strongest  # one scale for the whole picture
        colours = flow_vis.flow_uv_to_colors(scaled[..., 0], scaled[..., 1])
        columns.append(np.concatenate([frames[number], np.where(seen[..., None], colours, HIDDEN)]))
    picture = np.concatenate(columns, axis=1).astype(np.uint8)
    return picture.repeat(zoom, axis=0).repeat(zoom, axis=1)


def plot_states(simulation: Simulation) -> pyplot.Figure:
    """Place, height and speed of every object over time, and the energy of all; dotted lines are contacts."""
    times = np.arange(FRAMES) / FPS
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for index, thing in enumerate(simulation.setup.things):
        x, y, _, vx, vy, _ = simulation.states[:, index].T
        style = {"color": np.array(render.PALETTE[thing.look.colour]) / 255, "marker": "."}
        label = f"{thing.look.size} {thing.look.colour} {thing.look.shape}"
        axes[0, 0].plot(times, x, label=label, **style)
        axes[0, 1].plot(times, render.SIDE - y, **style)
        axes[1, 0].plot(times, np.hypot(vx, vy), **style)
    axes[1, 1].plot(times, physics.energy(simulation) / 1000, color="black", marker=".")
    names = ("x (px)", "height (px)", "speed (px/s)", "energy (1000 px$^4$/s$^2$)")
    for axis, name in zip(axes.flat, names, strict=True):
        axis.set_ylabel(name)
        for contact in simulation.contacts:
            axis.axvline(contact.time, color="grey", linestyle=":", linewidth=0.8)
    for axis in axes[1]:
        axis.set_xlabel("time (s)")
    axes[0, 0].legend()
    figure.suptitle(captions.caption(simulation.attributes, simulation.setup.seed))
    return figure
