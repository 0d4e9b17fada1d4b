"""The miniature world: right physics, exact flow, wrong twins, words that can be read back, and its collections."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.ndimage import map_coordinates

from moalign import config, video
from moalign.errors import Problem
from moalign.stages import collect, world
from moalign.world import captions, corrupt, footage, physics, render
from moalign.world.physics import FPS, FRAMES, SCENES, SIDE, Look, Setup, Simulation, Thing

SEEDS = range(12)


def lossless(scene, seed):
    """The clip's start without friction and with elastic bounces."""
    return replace(physics.setup(scene, seed), elasticity=1.0, friction=0.0)


def still(*things, places):
    """A hand-made simulation: things, and [F, N, 3] x, y, angle."""
    what = physics.Attributes("collide", tuple(thing.look for thing in things), None, "slow")
    start = Setup(what, 5, things, physics.room(), 0.0, 1.0, 0.0)
    states = np.concatenate([np.array(places, float), np.zeros((*np.shape(places)[:2], 3))], axis=2)
    shown = states.shape[:2]
    return Simulation(start, states, np.ones(shown, bool), np.ones((*shown, 2)), ())


def ball(colour="red", radius=9.0):
    return Thing(Look("ball", colour, "large"), radius, 0.0, 0.0)


# --- physics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES)
def test_a_clip_is_a_function_of_scene_and_seed(scene):
    first, again, other = (physics.simulate(scene, seed) for seed in (7, 7, 8))
    assert np.array_equal(first.states, again.states) and first.contacts == again.contacts
    frames = render.draw(first)
    assert frames.shape == (FRAMES, SIDE, SIDE, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, render.draw(again))
    assert not np.array_equal(frames, render.draw(other))


@pytest.mark.parametrize(("scene", "seeds"), [("throw", SEEDS), ("fall", SEEDS), ("collide", SEEDS)])
def test_energy_is_kept_where_nothing_takes_it(scene, seeds):
    for seed in seeds:
        energy = physics.energy(physics.evolve(lossless(scene, seed)))
        assert np.abs(energy / energy[0] - 1).max() < 1e-6


def test_free_flight_is_the_parabola():
    simulation = physics.simulate("throw", 2)
    thing, gravity = simulation.setup.things[0], simulation.setup.gravity
    frames = np.arange(simulation.contacts[0].frame)
    t = frames / FPS
    assert gravity > 0 and len(t) > 4
    assert np.allclose(simulation.states[frames, 0, 1], thing.y + thing.vy * t + gravity * t**2 / 2, atol=1e-9)
    assert np.allclose(simulation.states[frames, 0, 4], thing.vy + gravity * t, atol=1e-9)


def swing(_, state, pull):
    """d/dt of a pendulum's (angle, spin)."""
    angle, spin = state
    return spin, -pull * np.sin(angle)


def test_the_pendulum_swings_as_its_equation_says():
    for seed in range(3):
        simulation = physics.simulate("pendulum", seed)
        thing = simulation.setup.things[0]
        inertia = thing.rod**2 + thing.radius**2 / 2  # per mass, about the pivot
        pull = simulation.setup.gravity * thing.rod / inertia
        times = np.arange(FRAMES) / FPS
        right = solve_ivp(
            lambda _, s, pull=pull: (s[1], -pull * np.sin(s[0])),
            (0, times[-1]),
            (thing.angle, 0),
            t_eval=times,
            rtol=1e-9,
        )
        assert np.abs(simulation.states[:, 0, 2] - right.y[0]).max() < 2e-3


def test_momentum_is_kept_when_balls_collide():
    for seed in SEEDS:
        start = replace(physics.setup("collide", seed), surfaces=())  # no table edge to take any
        simulation = physics.evolve(start)
        mass = np.array([thing.mass for thing in start.things])[:, None]
        momentum = (mass * simulation.states[:, :, 3:5]).sum(axis=1)
        assert simulation.contacts and np.abs(momentum - momentum[0]).max() < 1e-6 * np.abs(momentum).max()


@pytest.mark.parametrize("scene", SCENES)
def test_every_clip_shows_what_it_is_called(scene):
    for seed in range(100, 120):
        simulation = physics.simulate(scene, seed)
        radius = np.array([thing.radius for thing in simulation.setup.things])
        x, y = simulation.states[..., 0], simulation.states[..., 1]
        assert (np.minimum(x, SIDE - x) > radius - 0.5).all() and (np.minimum(y, SIDE - y) > radius - 0.5).all()
        assert np.hypot(np.diff(x, axis=0), np.diff(y, axis=0)).max() > 1.5  # px from one frame to the next
        met = {(contact.a, contact.b) for contact in simulation.contacts}
        if scene == "fall":
            assert all((index, "floor") in met for index in range(len(radius)))
        if scene == "collide":
            assert {(0, 1), (1, 0)} & met
        if scene == "ramp":  # rolls without slipping
            _, _, _, vx, vy, spin = simulation.states[3, 0]
            assert abs(spin) * radius[0] == pytest.approx(np.hypot(vx, vy), rel=0.01)
        if scene == "slide":  # stops by itself
            assert not met and abs(simulation.states[-1, 0, 3]) < 0.1
        if simulation.attributes.speed:
            low, high = physics.SPEED[scene][simulation.attributes.speed]
            assert low - 0.1 <= np.hypot(*simulation.states[0, :, 3:5].T).max() <= high + 0.1


def test_an_unknown_scene_is_named():
    with pytest.raises(Problem, match="no such scene, 'fly'; allowed: fall"):
        physics.simulate("fly", 0)


# --- pictures and flow ---------------------------------------------------------------------------------------------


def warp(frame, vectors):
    """What `frame` shows where the flow points, [64, 64, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE]
    at = [y + vectors[..., 1], x + vectors[..., 0]]
    return np.stack([map_coordinates(frame[..., c].astype(float), at, order=1, mode="nearest") for c in range(3)], -1)


def inner(simulation, frame, index=0, share=0.7):
    """Pixels well inside an object."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    return render.edge(simulation.setup.things[index], *render.to_body(simulation, frame, index, x, y)) < share


def test_flow_is_exact_for_moves_by_whole_pixels_and_right_angles():
    simulation = still(ball(), places=[[[30.0, 31.0, 0.0]], [[37.0, 26.0, np.pi / 2]]])
    frames = render.draw(simulation)
    vectors, seen = render.flow(simulation, 0, 1)
    inside = inner(simulation, 0)
    assert seen[inside].all() and inside.sum() > 100
    assert np.abs(warp(frames[1], vectors) - frames[0])[inside].max() <= 1
    assert np.allclose(vectors[31, 38], (7 - 9, -5 + 8), atol=1e-5)  # (8.5, 0.5) from the centre turns to (-0.5, 8.5)


@pytest.mark.parametrize("scene", SCENES)
def test_flow_brings_the_next_frame_onto_this_one(scene):
    before, after = [], []
    for seed in range(6):
        simulation = physics.simulate(scene, seed)
        frames = render.draw(simulation)
        for number in range(0, FRAMES - 1, 3):
            vectors, seen = render.flow(simulation, number, number + 1)
            moving = seen & (np.linalg.norm(vectors, axis=-1) > 1) & inner(simulation, number)
            if moving.sum() > 20:
                here = frames[number].astype(float)
                after.append(np.abs(warp(frames[number + 1], vectors) - here)[moving].mean())
                before.append(np.abs(frames[number + 1] - here)[moving].mean())
            rest = seen & (vectors == 0).all(axis=-1)
            error = np.abs(frames[number + 1] - frames[number].astype(float)).max(axis=-1)[rest]
            assert np.median(error) == 0 and error.mean() < 3  # only outlines of moving things touch pixels at rest
    assert np.mean(after) < 4  # grey levels; resampled textures cost some
    assert np.mean(before) > 5 * np.mean(after)


def test_hidden_pixels_are_marked():
    places = [[[20.0, 32.0, 0.0], [44.0, 32.0, 0.0]], [[20.0, 32.0, 0.0], [26.0, 32.0, 0.0]]]
    simulation = still(ball("red"), ball("blue"), places=places)
    vectors, seen = render.flow(simulation, 0, 1)
    assert not seen[32, 24] and seen[32, 13]  # the blue ball comes to lie over the right of the red one
    assert not seen[32, 34] and seen[10, 10]  # and over the background
    assert np.allclose(vectors[32, 44], (-18, 0)) and seen[32, 44]
    assert np.allclose(render.visibility(simulation)[0], 1, atol=0.02)
    red, blue = render.visibility(simulation)[1]
    assert 0.2 < red < 0.7 and blue == pytest.approx(1, abs=0.02)


def test_visibility_of_what_leaves_the_frame():
    simulation = still(ball(), places=[[[0.0, 32.0, 0.0]], [[-12.0, 32.0, 0.0]]])
    assert np.allclose(render.visibility(simulation)[:, 0], (0.5, 0), atol=0.02)


def test_looks_say_nothing_about_motion():
    colours = {"strong": [], "weak": []}
    for seed in range(300):
        look = render.appearance(physics.setup("ramp", seed))
        colours[physics.attributes("ramp", seed).gravity].append((look.brightness, *look.background[0]))
    strong, weak = (np.array(colours[name]) for name in ("strong", "weak"))
    spread = np.concatenate([strong, weak]).std(axis=0)
    assert (np.abs(strong.mean(axis=0) - weak.mean(axis=0)) < 0.35 * spread).all()  # 3 standard errors


# --- wrong physics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", corrupt.KINDS)
def test_twins_look_alike_and_move_otherwise(kind):
    seen = set()
    for scene in SCENES:
        for seed in range(2):
            right = physics.simulate(scene, seed)
            if kind not in corrupt.kinds(right):
                continue
            wrong, again = corrupt.twin(scene, seed, kind), corrupt.twin(scene, seed, kind)
            seen.add(scene)
            assert wrong.attributes == right.attributes
            assert all(np.array_equal(getattr(wrong, k), getattr(again, k)) for k in ("states", "visible", "scale"))
            frames = render.draw(wrong)
            changed = np.abs(frames.astype(int) - render.draw(right)).max(axis=(1, 2, 3)) > 40
            assert changed.sum() >= 3
            look, same = render.appearance(wrong.setup), render.appearance(right.setup)
            assert look.brightness == same.brightness
            assert np.array_equal(look.things[0].waves, same.things[0].waves)
    assert len(seen) >= 3


def step(simulation):
    """[F - 1, N] pixels from one frame to the next."""
    return np.linalg.norm(np.diff(simulation.states[:, :, :2], axis=0), axis=-1)


def test_each_twin_is_wrong_in_its_own_way():
    assert step(corrupt.twin("ramp", 1, "teleport")).max() > 12 > step(physics.simulate("ramp", 1)).max()
    assert not corrupt.twin("throw", 1, "vanish").visible.all()
    assert corrupt.twin("pendulum", 1, "drift").scale[-1].max() != 1
    assert corrupt.twin("slide", 1, "float").states[-1, 0, 1] < physics.simulate("slide", 1).states[-1, 0, 1] - 8
    up = corrupt.twin("fall", 1, "reverse")
    assert up.setup.gravity < 0 and up.states[4, 0, 1] < up.states[0, 0, 1]
    through = corrupt.twin("collide", 1, "pass")
    assert not any({contact.a, contact.b} == {0, 1} for contact in through.contacts)
    paces = step(corrupt.twin("collide", 1, "jitter"))[:, 0]
    assert paces.max() > 3 * np.median(paces[paces < np.median(paces)])


def test_a_twin_that_would_change_nothing_is_refused():
    with pytest.raises(Problem, match="'reverse' would not change this clip of 'collide'; allowed: teleport"):
        corrupt.twin("collide", 0, "reverse")
    with pytest.raises(Problem, match="no such wrong physics"):
        corrupt.twin("collide", 0, "melt")


# --- words ---------------------------------------------------------------------------------------------------------


def test_captions_name_every_attribute_and_can_be_read_back():
    for index in range(1500):
        scene, seed = physics.choose(3, index)
        what = physics.attributes(scene, seed)
        text = captions.caption(what, seed)
        assert captions.named(text) == what, text
        assert len(text.encode()) <= captions.LONGEST and text == captions.caption(what, seed)
        assert physics.Attributes.of(json.loads(json.dumps(what.row()))) == what


def choose(index):
    return physics.choose(0, index)


def test_there_are_many_wordings():
    for scene in SCENES:
        what = physics.attributes(scene, 4)
        assert len({captions.caption(what, seed) for seed in range(200)}) > 80
    said = " ".join(captions.caption(physics.attributes(*clip), clip[1]) for clip in map(choose, range(3000)))
    tables = (captions.SIZE_WORDS, captions.COLOUR_WORDS, captions.SHAPE_WORDS, captions.GRAVITY_WORDS)
    for words in (word for table in (*tables, captions.SPEED_WORDS) for ways in table.values() for word in ways):
        assert words in said


def test_a_prompt_that_says_little_names_little():
    what = captions.named("A huge green ball at rest")
    assert what == physics.Attributes("", (Look("ball", "green", "large"),), None, None)


def test_the_bench_has_its_own_seeds_and_its_file():
    clips = {physics.choose(0, index)[1] for index in range(2000)}
    prompts = {physics.choose(0, index, prompt=True)[1] for index in range(2000)}
    assert max(clips) < 2**48 <= min(prompts) and len(clips) == len(prompts) == 2000
    made = captions.prompts(24, 0)
    assert len(set(made)) == 24
    assert [captions.named(text).scene for text in made] == list(SCENES) * 4
    for count, name in ((6, "world"), (512, "world-512")):
        with open(f"resources/prompts/{name}.txt", encoding="utf-8") as file:
            assert file.read().splitlines() == captions.prompts(count, 0)


# --- collections ---------------------------------------------------------------------------------------------------


def pin(tmp_path, clip=(17, 8.0, 64), **source):
    made = config.CollectPin(stage="collect", revision=1, source=config.Source(**source), clip=clip)
    path = tmp_path / "pin.yaml"
    path.write_text(config.dump(made))
    return str(path)


def test_the_world_as_a_collection(tmp_path):
    out = tmp_path / "world" / "annotations.json"
    collect.run(config=pin(tmp_path, make="world", clips=72, seed=1), out=str(out))
    rows = json.loads(out.read_text())
    assert len(rows) == 72 + len(collect.BAD)
    bad = dict(zip(collect.BAD, rows[collect.BAD_EVERY :: collect.BAD_EVERY + 1], strict=True))
    good = [
        row for row in rows if row not in bad.values() or (row is rows[rows.index(row)] and row == bad["duplicate"])
    ]
    for row in good[::7]:
        found = video.probe(out.parent / row["path"])
        assert (found.frames, found.fps, found.height, found.width) == (FRAMES, FPS, SIDE, SIDE)
        what = physics.Attributes.of(row["attributes"])
        text = row["cap"][0] if isinstance(row["cap"], list) else row["cap"]
        assert captions.named(text) == what == physics.attributes(what.scene, row["seed"])
        frames = video.read(out.parent / row["path"], list(range(FRAMES)))
        assert np.abs(frames.astype(int) - collect.picture(row)).mean() < 4  # H.264 and its halved colours
    assert sum("num_frames" not in row for row in good) == 6 == sum(isinstance(row["cap"], list) for row in good)
    check_bad(bad, rows, out.parent)


def check_bad(bad, rows, root):
    for kind in ("truncated", "text"):
        with pytest.raises(video.BadVideo):
            video.read(root / bad[kind]["path"], list(range(FRAMES)))
    assert rows.count(bad["duplicate"]) == 2
    assert not bad["no caption"]["cap"] and bad["ugly"]["aesthetic"] < 4.75
    assert video.probe(root / bad["short"]["path"]).frames == bad["short"]["num_frames"] == 9
    assert video.probe(root / bad["wide"]["path"]).width == bad["wide"]["resolution"]["width"] == 4 * SIDE
    assert video.probe(root / bad["slow"]["path"]).fps == bad["slow"]["fps"] == 4
    frames = video.read(root / bad["still"]["path"], list(range(FRAMES))).astype(int)
    assert np.abs(frames - frames[0]).max() <= 8


def test_a_collection_is_the_same_each_time(tmp_path):
    files = []
    for name in "ab":
        out = tmp_path / name / "annotations.json"
        collect.run(config=pin(tmp_path, make="world", clips=9, seed=5), out=str(out))
        files.append({path.name: path.read_bytes() for path in sorted(out.parent.rglob("*")) if path.is_file()})
    assert files[0] == files[1] and len(files[0]) == 11


def test_real_footage_as_a_collection(tmp_path):
    out = tmp_path / "footage" / "annotations.json"
    collect.run(config=pin(tmp_path, make="footage"), out=str(out))
    rows = json.loads(out.read_text())
    assert len(rows) == len(footage.SHOTS) and len({row["path"] for row in rows}) == 3
    for row in rows:
        found = video.probe(out.parent / row["path"])
        start, end = row["cut"]
        assert 0 <= start < end <= found.frames == row["num_frames"] and row["cap"]
        picked = [start + index for index in video.pick(end - start, found.fps, 17, 8.0)]
        frames = video.read(out.parent / row["path"], picked)[:, ::4, ::4].astype(int)
        assert np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)).max() < 50  # a change of shot makes 53 to 85


def test_clips_that_no_collection_has_are_refused(tmp_path):
    messages = {"world": "too long for the world's clips", "footage": "no shot of the footage lasts 6.1 s"}
    for make, message in messages.items():
        with pytest.raises(Problem, match=message):
            collect.run(config=pin(tmp_path, (97, 16.0, 64), make=make, clips=4), out=str(tmp_path / "a.json"))
    with pytest.raises(Problem, match="short_side: 480 is more than the world's 64"):
        collect.run(config=pin(tmp_path, (17, 8.0, 480), make="world", clips=4), out=str(tmp_path / "a.json"))
    assert not (tmp_path / "a.json").exists()


def test_one_clip_to_look_at(tmp_path):
    for name in "ab":
        world.run(scene="throw", seed=7, out=str(tmp_path / name / "clip.mp4"))
    files = ["clip.flow.png", "clip.mp4", "clip.states.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == files
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert video.probe(tmp_path / "a" / "clip.mp4").frames == FRAMES
