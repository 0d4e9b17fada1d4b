"""The miniature world's pictures: anti-aliased shapes with random textures, and the exact optical flow between frames.

    frames = draw(simulation)                   # uint8 [F, 64, 64, 3]
    vectors, seen = flow(simulation, 3, 4)      # [64, 64, 2] pixels, [64, 64] bool

Texture, tint and brightness come from the clip's seed and say nothing about its motion. A texture is a function on the
object itself, so it moves and turns with it.
"""

import math
from dataclasses import dataclass

import numpy as np

from moalign.world.physics import SIDE, Setup, Simulation, Thing, stream

OVER = 4  # samples per pixel and side
PALETTE = {  # base colours; textures and brightness scale them by 0.6 .. 1.3
    "red": (205, 28, 32),
    "orange": (214, 104, 10),
    "yellow": (205, 184, 12),
    "green": (30, 140, 40),
    "cyan": (20, 178, 188),
    "blue": (30, 60, 200),
    "purple": (112, 32, 168),
    "pink": (216, 84, 160),
}
ROD = (58, 58, 62)
ROD_HALF = 0.8  # px, half its thickness
RIM = 0.14  # share of the radius that is darkened, so that objects stand out from what is behind them


@dataclass(frozen=True)
class Texture:
    """Lightness around 1: stripes (one wave), a lattice (two) or blobs (three)."""

    waves: np.ndarray  # [K, 3] x and y in rad/px, phase
    contrast: float

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        total = sum(np.sin(kx * x + ky * y + phase) for kx, ky, phase in self.waves)
        return 1 + self.contrast * np.tanh(1.5 * total)


@dataclass(frozen=True)
class Appearance:
    """What a clip looks like beside its colours."""

    things: tuple[Texture, ...]
    background: tuple[np.ndarray, Texture]  # RGB, texture
    surface: tuple[np.ndarray, Texture]
    brightness: float


def appearance(start: Setup) -> Appearance:
    """Textures, tints and brightness of a clip, from its seed alone."""
    rng = stream(start.attributes.scene, start.seed, 2)
    brightness = rng.uniform(0.8, 1.1)
    background = rng.uniform(140, 200) + rng.uniform(-9, 9, 3), draw_texture(rng, (10, 30), 0.07)
    surface = rng.uniform(66, 92) + rng.uniform(-7, 7, 3), draw_texture(rng, (6, 16), 0.16)
    things = tuple(draw_texture(rng, (0.7 * t.radius, 1.6 * t.radius), 0.2) for t in start.things)
    return Appearance(things, background, surface, brightness)


def draw_texture(rng: np.random.Generator, lengths: tuple[float, float], contrast: float) -> Texture:
    """A random texture with wavelengths (pixels) in this range."""
    count = rng.integers(1, 4)
    length, turn = rng.uniform(*lengths, count), rng.uniform(0, 2 * math.pi, count)
    waves = np.stack([np.cos(turn) / length, np.sin(turn) / length, rng.uniform(0, 1, count)], axis=1)
    return Texture(2 * math.pi * waves, contrast * rng.uniform(0.6, 1.3))


# --- frames --------------------------------------------------------------------------------------------------------


def draw(simulation: Simulation) -> np.ndarray:
    """The clip: uint8 [F, 64, 64, 3] RGB. Later objects lie over earlier ones."""
    start = simulation.setup
    look = appearance(start)
    still = backdrop(start, look)
    frames = np.repeat(still[None], len(simulation.states), axis=0)
    for number, frame in enumerate(frames):
        for index in range(len(start.things)):
            if simulation.visible[number, index]:
                lay(frame, simulation, number, index, look.things[index])
    return np.clip(frames * look.brightness + 0.5, 0, 255).astype(np.uint8)


def backdrop(start: Setup, look: Appearance) -> np.ndarray:
    """What never moves, [64, 64, 3]: the background and the surfaces."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5  # these textures are coarse; only the outlines need finer samples
    background, surface = (texture.at(x, y)[..., None] * colour for colour, texture in (look.background, look.surface))
    x, y = samples(0, 0, SIDE, SIDE)
    inside = np.zeros(x.shape, bool)
    for wall in start.surfaces:
        inside |= in_polygon(wall.corners, x, y)
    covered = shrink(inside[..., None].astype(np.float32))
    return background * (1 - covered) + surface * covered


def lay(frame: np.ndarray, simulation: Simulation, number: int, index: int, texture: Texture) -> None:
    """Draw one object into `frame` [64, 64, 3]."""
    thing = simulation.setup.things[index]
    left, top, right, bottom = box(simulation, number, index)
    if left >= right or top >= bottom:
        return
    x, y = samples(left, top, right, bottom)
    u, v = to_body(simulation, number, index, x, y)
    depth = edge(thing, u, v)
    body = depth <= 1
    shade = texture.at(u, v) * np.where(depth > 1 - RIM, 0.6, 1) * body
    rod = in_rod(thing, u, v) & ~body
    cover, shade, rod = (shrink(part[..., None].astype(np.float32)) for part in (body | rod, shade, rod))
    colour = shade * np.array(PALETTE[thing.look.colour], float) + rod * np.array(ROD, float)
    frame[top:bottom, left:right] = frame[top:bottom, left:right] * (1 - cover) + colour


def samples(left: int, top: int, right: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of OVER x OVER points in each pixel of a box, both [OVER * height, OVER * width]."""
    x = left + (np.arange((right - left) * OVER) + 0.5) / OVER
    y = top + (np.arange((bottom - top) * OVER) + 0.5) / OVER
    return np.broadcast_to(x, (len(y), len(x))), np.broadcast_to(y[:, None], (len(y), len(x)))


def shrink(picture: np.ndarray) -> np.ndarray:
    """Mean over each pixel's samples."""
    rows = sum(picture[start::OVER] for start in range(OVER))  # several times faster than a mean over short axes
    return sum(rows[:, start::OVER] for start in range(OVER)) / OVER**2


def box(simulation: Simulation, number: int, index: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (pixels, inside the frame) of a box around an object and its rod."""
    thing = simulation.setup.things[index]
    x, y, angle = simulation.states[number, index, :3]
    reach = thing.radius * 1.4143 * simulation.scale[number, index].max() + 1
    tip_x, tip_y = x + math.sin(angle) * thing.rod, y - math.cos(angle) * thing.rod
    low = (min(x - reach, tip_x - 2), min(y - reach, tip_y - 2))
    high = (max(x + reach, tip_x + 2), max(y + reach, tip_y + 2))
    left, top = (max(0, math.floor(value)) for value in low)
    right, bottom = (min(SIDE, math.ceil(value)) for value in high)
    return left, top, right, bottom


# --- shapes --------------------------------------------------------------------------------------------------------


def to_body(simulation: Simulation, number: int, index: int, x: np.ndarray, y: np.ndarray) -> tuple:
    """Points of the frame in an object's own axes (pixels of its unscaled shape)."""
    cx, cy, angle = simulation.states[number, index, :3]
    sx, sy = simulation.scale[number, index]
    dx, dy, cos, sin = x - cx, y - cy, math.cos(angle), math.sin(angle)
    return (cos * dx + sin * dy) / sx, (cos * dy - sin * dx) / sy


def to_frame(simulation: Simulation, number: int, index: int, u: np.ndarray, v: np.ndarray) -> tuple:
    """The inverse of `to_body`."""
    cx, cy, angle = simulation.states[number, index, :3]
    sx, sy = simulation.scale[number, index]
    u, v, cos, sin = u * sx, v * sy, math.cos(angle), math.sin(angle)
    return cx + cos * u - sin * v, cy + sin * u + cos * v


def edge(thing: Thing, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """0 at the centre of the shape, 1 on its outline."""
    return np.hypot(u, v) / thing.radius if thing.look.shape == "ball" else np.maximum(abs(u), abs(v)) / thing.radius


def in_body(thing: Thing, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return edge(thing, u, v) <= 1


def in_rod(thing: Thing, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (abs(u) <= ROD_HALF) & (v <= 0) & (v >= -thing.rod) if thing.rod else np.zeros(u.shape, bool)


def in_polygon(corners: tuple, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points inside a convex polygon whose corners go round from x to y."""
    inside = np.ones(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        inside &= (bx - ax) * (y - ay) >= (by - ay) * (x - ax)
    return inside


# --- truth ---------------------------------------------------------------------------------------------------------


def owner(simulation: Simulation, number: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Index of the topmost object at points of a frame, -1 where there is none."""
    found = np.full(x.shape, -1)
    for index, thing in enumerate(simulation.setup.things):
        if simulation.visible[number, index]:
            u, v = to_body(simulation, number, index, x, y)
            found[in_body(thing, u, v) | in_rod(thing, u, v)] = index
    return found


def flow(simulation: Simulation, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact flow from frame `first` to `second`: [64, 64, 2] (dx, dy) in pixels, of what each pixel's centre shows.

    Also [64, 64] bool: the same point is seen in `second`, neither hidden nor outside. An object that `second` lacks
    has flow 0 and is not seen.
    """
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    whose = owner(simulation, first, x, y)
    to_x, to_y = x.copy(), y.copy()
    for index in range(len(simulation.setup.things)):
        mine = whose == index
        if mine.any() and simulation.visible[second, index]:
            u, v = to_body(simulation, first, index, x[mine], y[mine])
            to_x[mine], to_y[mine] = to_frame(simulation, second, index, u, v)
    inside = (to_x >= 0) & (to_x < SIDE) & (to_y >= 0) & (to_y < SIDE)
    seen = inside & (owner(simulation, second, to_x, to_y) == whose)
    return np.stack([to_x - x, to_y - y], axis=-1).astype(np.float32), seen


def visibility(simulation: Simulation) -> np.ndarray:
    """[F, N] share of each object (without its rod) that is in the frame and not behind another."""
    x, y = samples(0, 0, SIDE, SIDE)
    shares = np.zeros(simulation.visible.shape)
    for number in range(len(shares)):
        whose = owner(simulation, number, x, y)
        for index, thing in enumerate(simulation.setup.things):
            mine = (whose == index) & in_body(thing, *to_body(simulation, number, index, x, y))
            area = thing.mass * simulation.scale[number, index].prod() * OVER**2  # the density is 1
            shares[number, index] = min(1.0, mine.sum() / area)
    return shares
