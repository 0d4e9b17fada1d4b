"""Wrong physics: twins of a clip with the same objects, colours and textures, whose motion could not happen.

    wrong = twin("throw", 7, "teleport")        # a Simulation, drawn like any other

Each kind breaks one thing: teleport and vanish permanence, jitter time, pass solidity, float and reverse gravity, drift
rigidity. The caption stays that of the clip. In a twin the velocities are the engine's, not those of what is shown.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moalign.errors import Problem
from moalign.world.physics import FLOOR, FRAMES, SIDE, WALL, Simulation, evolve, simulate, stream

GHOSTS = {  # what a scene's objects pass through
    "fall": ("floor",),
    "throw": ("floor", "left wall", "right wall", "ceiling"),
    "collide": ("things",),
    "ramp": ("ramp",),
}
FALLS = ("fall", "throw", "ramp", "slide")  # scenes where gravity can point the other way and all stays in the frame


def twin(scene: str, seed: int, kind: str) -> Simulation:
    """The clip of (scene, seed) with one kind of wrong physics; a pure function of the three."""
    if kind not in KINDS:
        raise Problem(f"kind: no such wrong physics, {kind!r}; allowed: {', '.join(KINDS)}")
    simulation = simulate(scene, seed)
    allowed = kinds(simulation)
    if kind not in allowed:
        raise Problem(f"kind: {kind!r} would not change this clip of {scene!r}; allowed: {', '.join(allowed)}")
    return KINDS[kind](simulation, stream(scene, seed, 4))


def kinds(simulation: Simulation) -> list[str]:
    """The kinds that change this clip."""
    scene, start = simulation.attributes.scene, simulation.setup
    met = {contact.b if isinstance(contact.b, str) else "things" for contact in simulation.contacts}
    passes = scene == "ramp" or bool(met & set(GHOSTS.get(scene, ())))
    falls = scene in FALLS and start.gravity > 0
    return [kind for kind in KINDS if {"pass": passes, "reverse": falls}.get(kind, True)]


def teleport(simulation: Simulation, rng: np.random.Generator) -> Simulation:
    """One object jumps by 14 to 24 pixels, not straight ahead, between two frames and moves on from there."""
    frame, index = rng.integers(4, 12), rng.integers(len(simulation.setup.things))
    step = simulation.states[frame, index, :2] - simulation.states[frame - 1, index, :2]
    turn = np.arctan2(step[1], step[0]) + rng.uniform(np.pi / 3, 5 * np.pi / 3, 24)
    jumps = rng.uniform(14, 24, 24)[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    # Of some random jumps, the one after which it is in the frame for longest.
    low, high = margins(simulation, index)
    after = simulation.states[None, frame:, index, :2] + jumps[:, None]
    inside = ((after >= low) & (after <= high)).all(axis=2).sum(axis=1)
    states = simulation.states.copy()
    states[frame:, index, :2] += jumps[np.argmax(inside)]
    return replace(simulation, states=states)


def jitter(simulation: Simulation, rng: np.random.Generator) -> Simulation:
    """Time runs now slowly, now fast: from one frame to the next 0.1 to 0.4, or 1.6 to 2.2 of the right step."""
    count = FRAMES - 1
    paces = rng.permutation(np.concatenate([rng.uniform(0.1, 0.4, count // 2), rng.uniform(1.6, 2.2, count // 2)]))
    times = np.concatenate([[0.0], np.cumsum(paces) * count / paces.sum()])
    return evolve(simulation.setup, times)


def go_through(simulation: Simulation, rng: np.random.Generator) -> Simulation:
    """What should stop an object does not: balls go through each other, the floor, the walls or the ramp."""
    return evolve(replace(simulation.setup, ghosts=GHOSTS[simulation.attributes.scene]))


def vanish(simulation: Simulation, rng: np.random.Generator) -> Simulation:
    """One object is gone for 4 to 7 frames, or for good."""
    frame, index = rng.integers(4, 10), rng.integers(len(simulation.setup.things))
    back = frame + (rng.integers(4, 8) if rng.random() < 0.5 else FRAMES)
    visible = simulation.visible.copy()
    visible[frame:back, index] = False
    return replace(simulation, visible=visible)


def hover(simulation: Simulation, rng: np.random.Generator) -> Simulation:
    """One object stops obeying forces: it rises slowly, keeping a little of its sideways motion."""
    frame, index = rng.integers(3, 8), rng.integers(len(simulation.setup.things))
    late = np.arange(FRAMES - frame)
    states = simulation.states.copy()
    x, y, angle = states[frame, index, :3]
    sideways = 0.25 * (x - states[frame - 1, index, 0])
    low, high = margins(simulation, index)
    states[frame:, index, 0] = np.clip(x + sideways * late, low, high)
    states[frame:, index, 1] = np.maximum(y - rng.uniform(1.6, 2.6) * late, min(y, low))
    states[frame:, index, 2] = angle
    return replace(simulation, states=states)


def drift(simulation: Simulation, rng: np.random.Generator) -> Simulation:
    """One object's shape changes as it goes: it grows, shrinks, or becomes longer and thinner."""
    index = rng.integers(len(simulation.setup.things))
    ends = ((1.6, 1.6), (0.5, 0.5), (1.7, 0.6), (0.6, 1.7))
    end = np.array(ends[rng.integers(len(ends))]) * rng.uniform(0.92, 1.08, 2)
    scale = simulation.scale.copy()
    scale[:, index] = 1 + (end - 1) * np.linspace(0, 1, FRAMES)[:, None]
    return replace(simulation, scale=scale)


def reverse(simulation: Simulation, rng: np.random.Generator) -> Simulation:
    """Gravity pulls up. What would have fallen from the top starts at the bottom."""
    start = simulation.setup
    things = start.things
    if simulation.attributes.scene == "fall":
        things = tuple(replace(thing, y=FLOOR - thing.y) for thing in things)
    return evolve(replace(start, things=things, gravity=-start.gravity))


KINDS: dict[str, Callable[[Simulation, np.random.Generator], Simulation]] = {
    "teleport": teleport,
    "jitter": jitter,
    "pass": go_through,
    "vanish": vanish,
    "float": hover,
    "drift": drift,
    "reverse": reverse,
}


def margins(simulation: Simulation, index: int) -> tuple[float, float]:
    """Least and greatest coordinate of an object's centre that is clear of the walls."""
    reach = WALL + simulation.setup.things[index].radius
    return reach, SIDE - reach
