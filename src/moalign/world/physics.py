"""The miniature world's motion: six scenes of rigid bodies on pymunk, each a pure function of (scene, seed).

    simulation = simulate("throw", seed=7)      # states of every object in 17 frames, contacts, geometry

Units are pixels of the 64 x 64 frame and seconds; x points right and y down, and the centre of the top left pixel is
(0.5, 0.5). Angles are in radians and turn from x to y. The density is 1, so a ball of radius r weighs pi r^2.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pymunk

from moalign.errors import Problem

SIDE = 64  # pixels
FRAMES = 17
FPS = 8
SUBSTEPS = 240  # of the engine per frame; at 1920 Hz a lossless bounce changes the energy by less than 1e-6

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = {"small": 5.0, "medium": 7.25, "large": 10.0}  # radius of a ball, half the side of a box; +-5 %
GRAVITY = {"strong": (108.0, 132.0), "weak": (34.0, 44.0), "none": (0.0, 0.0)}  # px/s^2
SPEED = {  # px/s of the fastest object in frame 0
    "throw": {"slow": (26.0, 34.0), "fast": (58.0, 76.0)},
    "collide": {"slow": (20.0, 28.0), "fast": (48.0, 64.0)},
    "slide": {"slow": (24.0, 32.0), "fast": (56.0, 72.0)},
}
PULL = {  # the gravities that a scene knows
    "fall": ("strong", "weak"),
    "throw": ("strong", "weak", "none"),
    "ramp": ("strong", "weak"),
    "pendulum": ("strong", "weak"),
}
COUNT = {"fall": (0.6, 0.3, 0.1), "collide": (0.0, 0.8, 0.2)}  # chances of one, two, three objects; elsewhere one
FLOOR = 56.0  # y of its upper side
WALL = 3.0  # thickness of a drawn wall
OUTSIDE = 60.0  # thickness of what lies beyond the frame; thick, so that nothing tunnels
LEAST_IMPACT = 1.0  # px/s; slower touches (an object coming to rest) are not listed as contacts


@dataclass(frozen=True)
class Look:
    """How an object is named: what a caption says and a judge can check."""

    shape: str  # ball | box
    colour: str
    size: str


@dataclass(frozen=True)
class Attributes:
    """What is true of a clip. gravity and speed are None in scenes that do not vary them."""

    scene: str
    objects: tuple[Look, ...]
    gravity: str | None = None  # strong | weak | none
    speed: str | None = None  # slow | fast

    def row(self) -> dict:
        """As plain JSON."""
        return {**asdict(self), "objects": [asdict(look) for look in self.objects]}

    @classmethod
    def of(cls, row: dict) -> "Attributes":
        """From plain JSON."""
        return cls(row["scene"], tuple(Look(**look) for look in row["objects"]), row["gravity"], row["speed"])


@dataclass(frozen=True)
class Thing:
    """One object at time 0. A ball with a rod is a pendulum's: one rigid body, the rod points to the pivot."""

    look: Look
    radius: float  # of a ball; half the side of a box
    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0
    angle: float = 0.0
    spin: float = 0.0  # rad/s
    rod: float = 0.0  # length, from the centre to the pivot at angle 0 straight above

    @property
    def mass(self) -> float:
        return math.pi * self.radius**2 if self.look.shape == "ball" else (2 * self.radius) ** 2

    @property
    def inertia(self) -> float:
        return self.mass * self.radius**2 * (1 / 2 if self.look.shape == "ball" else 2 / 3)


@dataclass(frozen=True)
class Surface:
    """A fixed convex polygon: floor, wall, ceiling or ramp. Those beyond the frame are solid and unseen."""

    name: str
    corners: tuple[tuple[float, float], ...]  # in order, turning from x to y


@dataclass(frozen=True)
class Setup:
    """All that the engine needs to know."""

    attributes: Attributes
    seed: int
    things: tuple[Thing, ...]
    surfaces: tuple[Surface, ...]
    gravity: float  # px/s^2, downwards
    elasticity: float  # of a thing on a surface; two things together have its square
    friction: float  # likewise
    pivot: tuple[float, float] | None = None
    ghosts: tuple[str, ...] = ()  # surfaces that let things through; "things": they pass through each other


@dataclass(frozen=True)
class Contact:
    """Two bodies meet. `b` is the index of a thing or the name of a surface."""

    frame: int  # first frame shown at or after it
    time: float  # s
    a: int
    b: int | str
    speed: float  # px/s at which they close in along the normal


@dataclass(frozen=True)
class Simulation:
    """Truth about one clip. Right physics leaves `visible` true and `scale` one; the twins of corrupt.py may not."""

    setup: Setup
    states: np.ndarray  # [F, N, 6] x, y, angle, vx, vy, spin
    visible: np.ndarray  # [F, N] bool
    scale: np.ndarray  # [F, N, 2] of the object along its own x and y
    contacts: tuple[Contact, ...]

    @property
    def attributes(self) -> Attributes:
        return self.setup.attributes


def simulate(scene: str, seed: int) -> Simulation:
    """The clip of (scene, seed)."""
    return evolve(setup(scene, seed))


def setup(scene: str, seed: int) -> Setup:
    """Attributes and start of the clip of (scene, seed)."""
    if scene not in SCENES:
        raise Problem(f"scene: no such scene, {scene!r}; allowed: {', '.join(SCENES)}")
    return SCENES[scene](attributes(scene, seed), stream(scene, seed, 1), seed)


def attributes(scene: str, seed: int) -> Attributes:
    """What is true of the clip of (scene, seed), before anything is simulated."""
    rng = stream(scene, seed, 0)
    count = 1 + int(rng.choice(3, p=COUNT[scene])) if scene in COUNT else 1
    sizes = list(SIZES)[: 2 if count == 3 else 3]  # three large balls would fill the frame
    colours = rng.permutation(COLOURS)[:count]
    shape = "box" if scene == "slide" else "ball"
    objects = tuple(Look(shape, str(colour), str(rng.choice(sizes))) for colour in colours)
    gravity = str(rng.choice(PULL[scene])) if scene in PULL else None
    speed = str(rng.choice(list(SPEED[scene]))) if scene in SPEED else None
    return Attributes(scene, objects, gravity, speed)


def choose(collection: int, index: int, prompt: bool = False) -> tuple[str, int]:
    """(scene, seed) of entry `index` of a collection of clips, or of a list of prompts; the two never share a seed."""
    digest = hashlib.sha256(f"{collection}/{index}".encode()).digest()
    return list(SCENES)[index % len(SCENES)], int.from_bytes(digest[:6]) + prompt * 2**48


def stream(scene: str, seed: int, use: int) -> np.random.Generator:
    """Random numbers of one use (0 attributes, 1 motion, 2 appearance, 3 words, 4 corruption) of a clip."""
    return np.random.default_rng([list(SCENES).index(scene), seed, use])


# --- scenes: where things start ------------------------------------------------------------------------------------


def fall(what: Attributes, rng: np.random.Generator, seed: int) -> Setup:
    """One to three balls are let go near the top, hit the floor and bounce."""
    lane = SIDE / len(what.objects)
    things = []
    for index, look in enumerate(what.objects):
        radius = draw_radius(look, rng)
        play = (lane - 2 * radius) / 2 - 1
        x = lane * (index + 0.5) + rng.uniform(-play, play) * 0.6
        sideways = rng.uniform(-8, 8) if len(what.objects) == 1 else 0.0
        y = radius + rng.uniform(1, 12)
        things.append(Thing(look, radius, x, y, vx=sideways, angle=draw_angle(rng), spin=rng.uniform(-2, 2)))
    return Setup(
        what, seed, tuple(things), room(floor=SIDE - FLOOR), draw_gravity(what, rng), rng.uniform(0.65, 0.82), 0.2
    )


def throw(what: Attributes, rng: np.random.Generator, seed: int) -> Setup:
    """A ball is thrown upwards from one side of a closed room."""
    (look,) = what.objects
    radius, gravity, speed = draw_radius(look, rng), draw_gravity(what, rng), draw_speed(what, rng)
    side = rng.choice([-1, 1])
    y = rng.uniform(34, 44)
    # Not so steep that the ball would reach the ceiling before gravity turns it round.
    highest = math.sqrt(2 * gravity * (y - radius - WALL - 2)) if gravity else 0.35 * speed
    up = min(speed * math.sin(math.radians(rng.uniform(30, 62))), highest)
    vx = side * math.sqrt(speed**2 - up**2)
    x = SIDE / 2 - side * (SIDE / 2 - WALL - radius - rng.uniform(1, 4))
    thing = Thing(look, radius, x, y, vx, -up, draw_angle(rng), side * rng.uniform(0, 3))
    surfaces = room(floor=SIDE - FLOOR, walls=WALL, ceiling=WALL)
    return Setup(what, seed, (thing,), surfaces, gravity, rng.uniform(0.65, 0.8), 0.2)


def collide(what: Attributes, rng: np.random.Generator, seed: int) -> Setup:
    """On a smooth table seen from above one ball runs into another, which rests or comes to meet it."""
    radii = [draw_radius(look, rng) for look in what.objects]
    speed, reach = draw_speed(what, rng), radii[0] + radii[1]
    gap = rng.uniform(9, 13) if what.speed == "slow" else rng.uniform(14, 20)
    heading = rng.uniform(0, 2 * math.pi)
    along = np.array([math.cos(heading), math.sin(heading)])
    across = np.array([-along[1], along[0]])
    apart = (reach + gap) * along + rng.uniform(-0.5, 0.5) * reach * across
    centre = np.array([SIDE / 2, SIDE / 2]) + rng.uniform(-3, 3, 2)
    places = [place(centre - apart / 2, radii[0]), place(centre + apart / 2, radii[1])]
    velocities = [speed * along, -speed * rng.choice([0.0, 0.5]) * along]
    if len(radii) == 3:
        places.append(farthest(places, radii))
        velocities.append(np.zeros(2))
    things = tuple(
        Thing(look, radius, *map(float, at), *map(float, velocity), angle=draw_angle(rng))
        for look, radius, at, velocity in zip(what.objects, radii, places, velocities, strict=True)
    )
    surfaces = room(floor=WALL, walls=WALL, ceiling=WALL)
    return Setup(what, seed, things, surfaces, 0.0, rng.uniform(0.97, 1.0), 0.0)


def ramp(what: Attributes, rng: np.random.Generator, seed: int) -> Setup:
    """A ball rolls down a ramp, without slipping, and on along the floor."""
    (look,) = what.objects
    radius, side = draw_radius(look, rng), rng.choice([-1, 1])
    slope, foot = math.radians(rng.uniform(26, 36)), rng.uniform(40, 46)  # foot: length of the ramp on the floor
    top = FLOOR - (foot - WALL) * math.tan(slope)
    start = rng.uniform(1, 3) + radius  # px along the slope
    x = WALL + start * math.cos(slope) + radius * math.sin(slope)
    y = top + start * math.sin(slope) - radius * math.cos(slope)
    corners = ((WALL, top), (foot, FLOOR), (WALL, FLOOR))
    if side < 0:
        x, corners = SIDE - x, tuple((SIDE - cx, cy) for cx, cy in reversed(corners))
    thing = Thing(look, radius, x, y, angle=draw_angle(rng))
    surfaces = (*room(floor=SIDE - FLOOR, walls=WALL), Surface("ramp", corners))
    return Setup(what, seed, (thing,), surfaces, draw_gravity(what, rng), 0.3, 1.0)


def pendulum(what: Attributes, rng: np.random.Generator, seed: int) -> Setup:
    """A ball on a rigid rod is let go at an angle and swings."""
    (look,) = what.objects
    radius, rod = draw_radius(look, rng), rng.uniform(27, 32)
    # The swing ends inside the frame.
    widest = math.asin(min(1.0, (SIDE / 2 - radius - 1) / rod))
    angle = float(rng.choice([-1, 1])) * widest * rng.uniform(0.8, 1.0)
    pivot = (SIDE / 2, 8.0)
    thing = Thing(
        look, radius, pivot[0] - rod * math.sin(angle), pivot[1] + rod * math.cos(angle), angle=angle, rod=rod
    )
    surfaces = room(ceiling=8.0, floor=0.0)
    return Setup(what, seed, (thing,), surfaces, draw_gravity(what, rng), 0.0, 0.0, pivot)


def slide(what: Attributes, rng: np.random.Generator, seed: int) -> Setup:
    """A box slides over the floor and friction stops it, within the clip and before the wall."""
    (look,) = what.objects
    half, speed, side = draw_radius(look, rng), draw_speed(what, rng), rng.choice([-1, 1])
    room_left = SIDE - 2 * WALL - 2 * half - 3
    way = room_left * rng.uniform(0.8, 0.95) if what.speed == "fast" else rng.uniform(15, 20)
    start = rng.uniform(1, 2) if what.speed == "fast" else rng.uniform(1, room_left - way)
    x = SIDE / 2 - side * (SIDE / 2 - WALL - half - start)
    gravity = sum(GRAVITY["strong"]) / 2
    thing = Thing(look, half, x, FLOOR - half, side * speed)
    surfaces = room(floor=SIDE - FLOOR, walls=WALL)
    return Setup(what, seed, (thing,), surfaces, gravity, 0.0, speed**2 / (2 * gravity * way))


SCENES: dict[str, Callable[[Attributes, np.random.Generator, int], Setup]] = {
    "fall": fall,
    "throw": throw,
    "collide": collide,
    "ramp": ramp,
    "pendulum": pendulum,
    "slide": slide,
}


def draw_radius(look: Look, rng: np.random.Generator) -> float:
    return SIZES[look.size] * rng.uniform(0.95, 1.05) * (0.9 if look.shape == "box" else 1.0)


def draw_gravity(what: Attributes, rng: np.random.Generator) -> float:
    return rng.uniform(*GRAVITY[what.gravity])


def draw_speed(what: Attributes, rng: np.random.Generator) -> float:
    return rng.uniform(*SPEED[what.scene][what.speed])


def draw_angle(rng: np.random.Generator) -> float:
    return rng.uniform(-math.pi, math.pi)


def room(floor: float = 0.0, walls: float = 0.0, ceiling: float = 0.0) -> tuple[Surface, ...]:
    """Four surfaces around the frame that show this many pixels inside it."""
    low, high = -OUTSIDE, SIDE + OUTSIDE

    def block(name: str, left: float, top: float, right: float, bottom: float) -> Surface:
        return Surface(name, ((left, top), (right, top), (right, bottom), (left, bottom)))

    return (
        block("floor", low, SIDE - floor, high, high),
        block("left wall", low, low, walls, high),
        block("right wall", SIDE - walls, low, high, high),
        block("ceiling", low, low, high, ceiling),
    )


def place(at: np.ndarray, radius: float) -> np.ndarray:
    """The nearest centre where a ball of this radius clears the table's edges by a pixel."""
    return np.clip(at, WALL + radius + 1, SIDE - WALL - radius - 1)


def farthest(places: list[np.ndarray], radii: list[float]) -> np.ndarray:
    """The corner with most room for the last ball."""
    corners = [place(np.array([x, y], float), radii[-1]) for x in (0, SIDE) for y in (0, SIDE)]
    rooms = [min(np.linalg.norm(corner - at) - r for at, r in zip(places, radii, strict=False)) for corner in corners]
    return corners[int(np.argmax(rooms))]


# --- engine --------------------------------------------------------------------------------------------------------

THING, SURFACE = 1, 2  # collision types


def evolve(start: Setup, times: np.ndarray | None = None) -> Simulation:
    """Run the engine from `start`; bit-identical for equal setups.

    times: [F] when each shown frame is taken, in frames, from 0 and growing; 0, 1, 2, ... where not given.
    pymunk moves by p += v dt and then v += g dt. Starting the velocity half a step early makes that the leap-frog rule,
    which is exact in free flight; what is reported is the mean of the velocities half a step before and after.
    """
    dt = 1 / (FPS * SUBSTEPS)
    space, bodies = build(start, dt)
    stops = np.rint((np.arange(FRAMES) if times is None else times) * SUBSTEPS).astype(int).tolist()
    contacts: list[Contact] = []
    frame = step = 0  # what `touch` reads

    def touch(arbiter: pymunk.Arbiter, space: pymunk.Space, data: object) -> None:
        contact = describe(arbiter, frame, step * dt)
        if contact.speed > LEAST_IMPACT:
            contacts.append(contact)

    space.on_collision(THING, SURFACE, begin=touch)
    space.on_collision(THING, THING, begin=touch)
    states = [[[t.x, t.y, t.angle, t.vx, t.vy, t.spin] for t in start.things]]
    for frame in range(1, FRAMES):
        for step in range(stops[frame - 1] + 1, stops[frame]):  # noqa: B007
            space.step(dt)
        before, touched, step = velocities(bodies), len(contacts), stops[frame]
        space.step(dt)
        # A velocity that jumped within the very last step has no mean.
        now = velocities(bodies) if len(contacts) > touched else (before + velocities(bodies)) / 2
        states.append([[*body.position, body.angle, *row] for body, row in zip(bodies, now, strict=True)])
    shown = (FRAMES, len(bodies))
    return Simulation(start, np.array(states), np.ones(shown, bool), np.ones((*shown, 2)), tuple(contacts))


def build(start: Setup, dt: float) -> tuple[pymunk.Space, list[pymunk.Body]]:
    """The engine's space and one body per thing."""
    space = pymunk.Space()
    space.gravity = (0, start.gravity)
    space.collision_slop = 0.1  # px of overlap left alone: more than one step's way, or bounces would gain energy
    for surface in start.surfaces:
        if surface.name not in start.ghosts:
            shape = pymunk.Poly(space.static_body, surface.corners)
            shape.elasticity, shape.friction, shape.collision_type = 1.0, 1.0, SURFACE
            shape.surface_name = surface.name
            space.add(shape)
    bodies = []
    for index, thing in enumerate(start.things):
        body = pymunk.Body(thing.mass, thing.inertia)
        body.position, body.angle, body.angular_velocity = (thing.x, thing.y), thing.angle, thing.spin
        body.velocity = (thing.vx, thing.vy + start.gravity * dt / 2)
        r = thing.radius
        shape = pymunk.Circle(body, r) if thing.look.shape == "ball" else pymunk.Poly.create_box(body, (2 * r, 2 * r))
        # The engine multiplies the two shapes' values.
        shape.elasticity, shape.friction, shape.collision_type = start.elasticity, start.friction, THING
        shape.thing_index = index
        if start.pivot:
            space.add(pymunk.PivotJoint(space.static_body, body, start.pivot))
            shape.sensor = True
        if "things" in start.ghosts:
            shape.filter = pymunk.ShapeFilter(group=1)
        space.add(body, shape)
        bodies.append(body)
    return space, bodies


def describe(arbiter: pymunk.Arbiter, frame: int, time: float) -> Contact:
    """A touch in the engine as a Contact."""
    first, second = arbiter.shapes
    closing = (first.body.velocity - second.body.velocity).dot(arbiter.normal)
    other = second.surface_name if second.collision_type == SURFACE else second.thing_index
    return Contact(frame, time, first.thing_index, other, float(abs(closing)))


def velocities(bodies: list[pymunk.Body]) -> np.ndarray:
    """[N, 3] vx, vy, spin."""
    return np.array([[*body.velocity, body.angular_velocity] for body in bodies])


def energy(simulation: Simulation) -> np.ndarray:
    """[F] kinetic and potential energy of all objects together; height is counted from the floor's level."""
    start = simulation.setup
    mass, inertia = (np.array([getattr(t, name) for t in start.things]) for name in ("mass", "inertia"))
    _, y, _, vx, vy, spin = np.moveaxis(simulation.states, -1, 0)
    each = mass * (vx**2 + vy**2) / 2 + inertia * spin**2 / 2 + mass * start.gravity * (FLOOR - y)
    return each.sum(axis=1)
