"""Rater "physics": does a video of the miniature world show what its prompt names (SA), and could it happen (PC)?

VideoPhy2's construct with no learned part: a tracker finds the objects by their colour; SA is the share of the prompt's
attributes that hold, PC is how far the worst of LAWS is broken; both 1-5, and Joint is both >= 4 as for any rater.
Every number that a verdict rests on (colours, bins, thresholds) comes from real clips, in one file that says how it was
made (`Rules`; `moalign judge rules` writes it, `moalign judge check` judges the judge). Units: pixels of a 64 x 64
frame, frames.
"""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from moalign.errors import Problem
from moalign.manifest import Sample, Score

SIDE = 64  # pixels that frames are brought to
LEAST = 8.0  # px^2: what is smaller is no object
CHROMA = 0.22  # (max - min) / max of a pixel from which on it belongs to an object; walls and background stay below
FULL = 0.66  # and from here on it belongs wholly
SOFTEN = 0.7  # px, blur of colour before that: H.264 stores one colour for four pixels, which makes steps at an edge
LASTING = 0.5  # share of the frames in which the prompt's objects must be seen
DARK = 0.70  # of the background's brightness: what stands still and is darker is a wall
TOUCH = 1.5  # px between two outlines that count as touching
SEEN = 3  # frames in which a colour must be seen to be an object at all
BEND = 2.2  # px per frame^2: no force of this world bends a free path more
SINKS = 0.5  # px per frame downwards
STRETCH = 4  # steps of a free path from which its bend can be told
PASS_RATIOS = (1.0, 1.25, 2.0, 4.0)  # the worst law's measure over its threshold -> PC 5, 4, 3, 2, else 1
SHORTEST = 5  # frames in which a law can be seen to hold

LAWS = {
    "permanence": "frames in which an object of the video is not there, or is there twice",
    "shape": "largest change of an object's size or aspect from its median, in log units",
    "jerk": "largest change of acceleration away from any contact, px per frame^3",
    "gravity": "largest difference in acceleration between two free paths of a video, px per frame^2",
    "energy": "largest gain of speed, over all objects by mass, beyond what gravity could give, px per frame",
    "slip": "largest gain of speed from frame to frame while an object touches something, px per frame^2",
    "rebound": "how much faster an object leaves a wall or another object than it came, px per frame",
    "overlap": "deepest overlap of an object with a wall or with another object, px",
    "momentum": "change of the sum of momenta when two objects meet, of the momenta that they exchange",
}


class Look(Protocol):
    """How the prompt names an object."""

    shape: str
    colour: str
    size: str


class Named(Protocol):
    """What a prompt names (`moalign.world.captions.named`)."""

    scene: str
    objects: tuple[Look, ...]
    gravity: str | None
    speed: str | None


FLOORS = {"permanence": 0.5, "momentum": 0.1}  # least thresholds, of laws that real clips hardly break at all


@dataclass(frozen=True)
class Rules:
    """What real clips look like.

    `thresholds`: law -> 99th percentile; `bins`: attribute -> value -> typical number; `reference`: kind of clips
    (real, static, shuffled) -> their mean PC, by these very rules.
    """

    made_by: str
    clips: int
    palette: dict[str, list[float]]  # colour -> RGB, 0-255
    thresholds: dict[str, float]
    bins: dict[str, dict[str, float]]
    reference: dict[str, float]

    @classmethod
    def load(cls, path: str | Path) -> "Rules":
        """The rules in a file; Problem where it is not one."""
        try:
            rules = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            fault = rules.fault()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            fault = str(error)
        if fault:
            raise Problem(f"{path}: not a file of judge's rules ({fault}); make it with `moalign judge rules`")
        return rules

    def fault(self) -> str | None:
        """What is wrong with the numbers."""
        if self.thresholds.keys() != LAWS.keys():
            return f"thresholds: of {', '.join(self.thresholds)}; wanted: {', '.join(LAWS)}"
        colours = [[float(part) for part in rgb] for rgb in self.palette.values()]
        if not colours or any(len(rgb) != 3 or max(rgb) <= min(rgb) for rgb in colours):
            return "palette: three numbers to a colour, not all equal"
        numbers = [("thresholds", self.thresholds), *((f"bins.{name}", row) for name, row in self.bins.items())]
        for name, row in numbers:
            if not row or any(not math.isfinite(value) for value in row.values()):
                return f"{name}: a number is missing"
        if min(self.thresholds.values()) <= 0:
            return "thresholds: one is not above 0"
        if self.reference.keys() != {"real", "static", "shuffled"}:
            return "reference: wanted real, static, shuffled"
        return None

    def dump(self) -> str:
        """As the text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Track:
    """One object through a video; NaN where it is not seen."""

    colour: str
    at: np.ndarray  # [F, 2] x, y of the centre
    area: np.ndarray  # [F] px^2
    aspect: np.ndarray  # [F] log of width over height
    extent: np.ndarray  # [F] mean of width and height
    split: np.ndarray  # [F] share of the colour's area outside the object

    @property
    def radius(self) -> float:
        """Half of its extent, over the video."""
        return float(np.nanmedian(self.extent)) / 2

    @property
    def steps(self) -> np.ndarray:
        """[F-1, 2] from frame to frame."""
        return np.diff(self.at, axis=0)


@dataclass(frozen=True)
class Seen:
    """What the tracker makes of a video."""

    tracks: tuple[Track, ...]
    walls: np.ndarray  # [64, 64] px to the nearest wall or edge of the frame

    def to_wall(self, track: Track, at: np.ndarray | None = None) -> np.ndarray:
        """[F] px from an object's outline to the nearest wall, negative inside it; of the object at `at`, if given."""
        at = track.at if at is None else at
        x, y = np.nan_to_num(at, nan=SIDE / 2).T - 0.5
        maps = [a.astype(np.float32)[None] for a in (np.clip(x, 0, SIDE - 1), np.clip(y, 0, SIDE - 1))]
        near = cv2.remap(self.walls, *maps, cv2.INTER_LINEAR)[0]
        # beyond the frame's edge the distance goes on falling
        beyond = np.maximum(0, np.maximum(np.maximum(-x, x - SIDE + 1), np.maximum(-y, y - SIDE + 1)))
        return np.where(np.isnan(at[:, 0]), np.nan, near - beyond - track.radius)

    def apart(self, one: Track, other: Track) -> np.ndarray:
        """[F] px between the outlines of two objects."""
        return distance(one.at, other.at) - one.radius - other.radius

    def gaps(self, track: Track) -> dict[str, np.ndarray]:
        """[F] px to the walls ("") and to each other object, by its colour."""
        others = {other.colour: self.apart(track, other) for other in self.tracks if other is not track}
        return {"": self.to_wall(track), **others}

    def meets(self, track: Track) -> dict[str, np.ndarray]:
        """[F-1] whether an object may meet the walls (""), or another object, between a frame and the next.

        It does if it touches at either frame, or if both its course so far and, backwards, its course from then on
        lead to a touch: a ball that turns in mid-air has no such excuse. Of two objects one of the courses will do,
        since either may have met something else just before.
        """
        found = {}
        for name, gap in self.gaps(track).items():
            touching = np.fmin(gap[:-1], gap[1:]) <= (2 * TOUCH if name else TOUCH)
            ahead, back = (
                np.fmin.reduce([self.gap_at(track, name, ways, share) for share in (0.35, 0.7, 1.0)]) <= TOUCH
                for ways in (ahead_of, back_from)
            )
            ahead[0] = back[-1] = not name  # nothing comes before or after
            found[name] = touching | (ahead | back if name else ahead & back)
        return found

    def gap_at(self, track: Track, name: str, ways: Callable, share: float) -> np.ndarray:
        """[F-1] gap to the walls or to another object, this share of a step along `ways`."""
        at = ways(track.at, share)
        if not name:
            return self.to_wall(track, at)
        other = next(other for other in self.tracks if other.colour == name)
        return distance(at, ways(other.at, share)) - track.radius - other.radius

    def lonely(self, track: Track, but: str) -> np.ndarray:
        """[F] whether, from two frames before to two after, an object can meet nothing but entry `but` of its gaps."""
        others = [met for name, met in self.meets(track).items() if name != but]
        if not others:
            return np.ones(len(track.at), bool)
        met = np.pad(np.logical_or.reduce(others), 2)
        return ~np.lib.stride_tricks.sliding_window_view(met, 4).any(1)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[F] px between two paths [F, 2]."""
    return np.linalg.norm(a - b, axis=1)


def ahead_of(at: np.ndarray, share: float) -> np.ndarray:
    """[F-1, 2] places between frame t and t + 1, as the two steps before frame t lead on."""
    steps = np.diff(at, axis=0)
    before = np.concatenate([steps[:1], steps[:-1]])
    bend = before - np.concatenate([before[:1], before[:-1]])
    bend *= np.minimum(1, BEND / np.maximum(np.linalg.norm(bend, axis=1, keepdims=True), 1e-6))
    return at[:-1] + share * before + share * (share + 1) / 2 * bend


def back_from(at: np.ndarray, share: float) -> np.ndarray:
    """[F-1, 2] the same, as the two steps after frame t + 1 lead back."""
    return ahead_of(at[::-1], share)[::-1]


# --- the tracker ---------------------------------------------------------------------------------------------------


def watch(frames: np.ndarray, palette: dict[str, list[float]]) -> Seen:
    """Find coloured objects and dark walls in uint8 frames [F, H, W, 3] of any size."""
    if frames.shape[1:3] != (SIDE, SIDE):
        frames = np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in frames])
    pixels = np.stack([soften(frame) for frame in frames]).astype(np.float32)
    high, low = pixels.max(-1), pixels.min(-1)
    chroma = (high - low) / np.maximum(high, 1)
    cover = np.clip((chroma - CHROMA) / (FULL - CHROMA), 0, 1)  # [F, 64, 64]
    whose = np.full(cover.shape, -1)
    whose[cover > 0] = nearest_colour(pixels[cover > 0], palette)
    tracks = [track(colour, cover * (whose == number)) for number, colour in enumerate(palette)]
    found = [item for item in tracks if np.isfinite(item.area).sum() >= SEEN]
    return Seen(tuple(found), walls(pixels.mean(-1), cover))


def soften(frame: np.ndarray) -> np.ndarray:
    """A uint8 frame [H, W, 3] with its colour blurred and its lightness as it is."""
    parts = cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb)
    parts[..., 1:] = cv2.GaussianBlur(parts[..., 1:], (0, 0), SOFTEN)
    return cv2.cvtColor(parts, cv2.COLOR_YCrCb2RGB)


def nearest_colour(pixels: np.ndarray, palette: dict[str, list[float]]) -> np.ndarray:
    """Index of the palette's colour whose hue is nearest, of pixels [N, 3]; lightness and greyness do not matter."""
    centred = pixels - pixels.min(-1, keepdims=True)
    centred /= np.maximum(centred.max(-1, keepdims=True), 1)
    known = np.array(list(palette.values()), np.float32)
    known -= known.min(-1, keepdims=True)
    known /= known.max(-1, keepdims=True)
    return np.argmin([np.abs(centred - colour).sum(-1) for colour in known], axis=0)


def track(colour: str, cover: np.ndarray) -> Track:
    """The largest patch of a colour in each frame, from its cover [F, 64, 64] in 0..1."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    rows = np.full((len(cover), 6), np.nan)  # x, y, area, aspect, extent, split
    for number, frame in enumerate(cover):
        if frame.sum() < LEAST:
            continue
        count, labels, _, _ = cv2.connectedComponentsWithStats((frame > 0).astype(np.uint8), connectivity=8)
        areas = np.bincount(labels.ravel(), weights=frame.ravel(), minlength=count)
        areas[0] = 0
        largest = int(np.argmax(areas))
        if areas[largest] < LEAST:
            continue
        mine = np.where(labels == largest, frame, 0)
        area = areas[largest]
        cx, cy = (mine * x).sum() / area, (mine * y).sum() / area
        # a uniform disc or square of width w has standard deviation w / 4 or w / 3.46; their ratio is what counts
        wide, tall = math.sqrt((mine * (x - cx) ** 2).sum() / area), math.sqrt((mine * (y - cy) ** 2).sum() / area)
        ratio = math.log(max(wide, 0.1) / max(tall, 0.1))
        rows[number] = cx, cy, area, ratio, 2 * math.sqrt(area / math.pi), 1 - area / areas.sum()
    return Track(colour, rows[:, :2], *rows[:, 2:].T)


def walls(brightness: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Distance to walls, [64, 64]: what is dark behind the objects, and all beyond the frame."""
    behind = np.where(cover > 0, np.nan, brightness)
    seen = np.isfinite(behind).any(0)
    backdrop = np.full(seen.shape, np.nan)
    backdrop[seen] = np.nanmedian(behind[:, seen], axis=0)
    light = np.nanpercentile(backdrop, 75) if seen.any() else 0.0
    solid = np.nan_to_num(backdrop, nan=light) < DARK * light
    solid = cv2.morphologyEx(solid.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    padded = np.pad(1 - solid, 1)  # the frame's border is a wall
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1] - 0.5


# --- physical commonsense ------------------------------------------------------------------------------------------


def laws(seen: Seen) -> dict[str, float]:
    """How far each law is broken by the object that breaks it most; see LAWS."""
    worst = {**dict.fromkeys(LAWS, 0.0), "gravity": gravity(seen), "energy": energy(seen)}
    for item in seen.tracks:
        gaps, meets = seen.gaps(item), seen.meets(item)
        measures = {
            "permanence": permanence(item),
            "shape": shape(item),
            "jerk": jerk(item, np.logical_or.reduce(list(meets.values()))),
            "slip": slip(item, gaps[""]),
            "rebound": [rebound(item, gap, seen.lonely(item, name)) for name, gap in gaps.items()],
            "overlap": [-gap for gap in gaps.values()],
        }
        for law, values in measures.items():
            values = np.concatenate([np.ravel(part) for part in values]) if isinstance(values, list) else values
            if np.isfinite(values).any():
                worst[law] = max(worst[law], float(np.nanmax(values)))
    for number, one in enumerate(seen.tracks):
        for other in seen.tracks[number + 1 :]:
            worst["momentum"] = max(worst["momentum"], momentum(seen, one, other))
    return worst


def permanence(item: Track) -> float:
    """Frames without the object, and those in which much of its colour is elsewhere."""
    return float(np.isnan(item.area).sum() + (item.split > 0.25).sum())


def shape(item: Track) -> float:
    size = np.log(item.area) / 2
    return float(np.nanmax([np.abs(size - np.nanmedian(size)), np.abs(item.aspect - np.nanmedian(item.aspect))]))


def jerk(item: Track, meets: np.ndarray) -> np.ndarray:
    """Third differences of places, over three steps in none of which the object may have met anything."""
    change = np.linalg.norm(np.diff(item.at, n=3, axis=0), axis=1)
    return np.where(meets[:-2] | meets[1:-1] | meets[2:], np.nan, change)


def gravity(seen: Seen) -> float:
    """How much the accelerations of free paths differ, which gravity alone bends; of all objects, a few frames each."""
    found = []
    for item in seen.tracks:
        bound = np.logical_or.reduce(list(seen.meets(item).values())) | np.isnan(item.steps).any(1)
        ends = np.flatnonzero(np.diff(np.concatenate([[True], bound, [True]])))
        for start, end in zip(ends[::2], ends[1::2], strict=True):  # steps of a path that meets nothing
            if end - start >= STRETCH:
                found.append((item.steps[end - 1] - item.steps[start]) / (end - 1 - start))
    return max((float(np.linalg.norm(a - b)) for a, b in combinations(found, 2)), default=0.0)


def energy(seen: Seen) -> float:
    """Gain of the root mean square speed (by mass, which is area) from a frame to the next; contacts only lose.

    The step that holds a knock is short, so the faster of the two before counts; a fall may add what gravity gives.
    """
    if not seen.tracks:
        return 0.0
    masses = np.array([np.nanmedian(item.area) for item in seen.tracks])
    steps = np.stack([item.steps for item in seen.tracks])  # [N, F-1, 2]
    square = np.einsum("n,nf->f", masses, np.square(steps).sum(-1)) / masses.sum()
    sunk = np.einsum("n,nf->f", masses, np.maximum(0, steps[..., 1])) / masses.sum()
    granted = np.fmax(square[1:-1], square[:-2]) + 2 * BEND * (sunk[1:-1] + sunk[2:])
    gains = np.sqrt(square[2:]) - np.sqrt(granted)
    return float(np.nanmax(gains, initial=0.0))


def slip(item: Track, gap: np.ndarray) -> np.ndarray:
    """Gains of speed over two steps that both touch; a loss may be a knock."""
    touching = gap <= TOUCH
    gains = np.diff(np.linalg.norm(item.steps, axis=1))
    return np.where(touching[:-2] & touching[1:-1] & touching[2:], gains, np.nan)


def rebound(item: Track, gap: np.ndarray, lonely: np.ndarray) -> np.ndarray:
    """At each touch, with nothing else about: how fast the gap opens after it, less how fast it closed before.

    A gap that opens because the object sinks is gravity's.
    """
    rate = np.where(item.steps[:, 1] < SINKS, np.diff(gap), np.fmin(0, np.diff(gap)))  # > 0 opens
    found = np.full(len(gap), np.nan)
    for frame in range(1, len(gap) - 1):
        closing, opening = rate[max(0, frame - 3) : frame], rate[frame : frame + 2]
        if gap[frame] <= TOUCH and lonely[frame] and np.isfinite(closing).any() and np.isfinite(opening).any():
            found[frame] = np.nanmax(opening) - max(0.0, -np.nanmin(closing))
    return found


def momentum(seen: Seen, one: Track, other: Track) -> float:
    """|change of m1 v1 + m2 v2| over |change of m1 v1| + |change of m2 v2|, across their meeting; masses by area."""
    gap = seen.apart(one, other)
    if not np.isfinite(gap).any():
        return 0.0
    frame = int(np.nanargmin(gap))
    met = 2 <= frame <= len(gap) - 3 and seen.meets(one)[other.colour][frame - 1 : frame + 1].any()
    if not (met and seen.lonely(one, other.colour)[frame] and seen.lonely(other, one.colour)[frame]):
        return 0.0
    masses = [np.nanmedian(item.area) for item in (one, other)]
    changes = []
    for item, mass in zip((one, other), masses, strict=True):
        before, after = item.at[frame - 1] - item.at[frame - 2], item.at[frame + 2] - item.at[frame + 1]
        changes.append(mass * (after - before))
    exchanged = sum(np.linalg.norm(change) for change in changes)
    if not exchanged > sum(masses):  # less than a pixel per frame: nothing that could be measured
        return 0.0
    return float(np.linalg.norm(sum(changes)) / exchanged)


def worst_ratio(broken: dict[str, float], thresholds: dict[str, float]) -> float:
    """The worst law's measure over its threshold; above 1 is more than in 99 % of real clips."""
    return max(broken[law] / thresholds[law] for law in thresholds)


def commonsense(broken: dict[str, float], thresholds: dict[str, float]) -> int:
    """PC, 1-5, from the worst law."""
    ratio = worst_ratio(broken, thresholds)
    return 5 - sum(ratio > limit for limit in PASS_RATIOS)


# --- semantic adherence --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """How much of a prompt a video shows, before a number is put into a bin."""

    count: bool
    colours: float  # share of the named objects that are there
    event: bool
    readings: dict[str, list[tuple[str, str, float]]]  # kind -> bin, value named, number measured (NaN: none)


def look_for(seen: Seen, prompt: Named) -> Found:
    """Look for what a prompt names. Gravity and speed are measured as the event has it: none without the event."""
    lasting = {item.colour: item for item in seen.tracks if np.isfinite(item.area).mean() >= LASTING}
    named = [lasting.get(look.colour) for look in prompt.objects]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an object may be unseen in all the frames that an event needs
        happens = None not in named and EVENTS[prompt.scene](seen, named)
    pairs = list(zip(prompt.objects, named, strict=True))
    sizes = [(f"size {look.shape}", look.size, item.radius if item else math.nan) for look, item in pairs]
    readings = {"sizes": sizes}
    for kind, value in (("gravity", prompt.gravity), ("speed", prompt.speed)):
        if value is not None:
            number = MEASURES[kind](prompt.scene, seen, named) if happens else math.nan
            readings[kind] = [(f"{kind} {prompt.scene}", value, number)]
    return Found(
        count=len(lasting) == len(prompt.objects),
        colours=float(np.mean([item is not None for item in named])),
        event=bool(happens),
        readings=readings,
    )


def adherence(found: Found, bins: dict[str, dict[str, float]]) -> dict[str, float]:
    """Share that holds of each kind of attribute in the prompt: count, colours, sizes, event, gravity, speed."""
    held = {"count": float(found.count), "colours": found.colours, "event": float(found.event)}
    for kind, rows in found.readings.items():
        held[kind] = float(np.mean([nearest(number, bins[name]) == value for name, value, number in rows]))
    return held


def unknown(prompt: Named, bins: dict[str, dict[str, float]]) -> str | None:
    """What of a prompt these rules cannot judge."""
    if prompt.scene not in EVENTS:
        return "it names no event of this world"
    if len(prompt.objects) < (2 if prompt.scene == "collide" else 1):
        return "it does not name each object by size, colour and shape"
    wanted = {f"size {look.shape}": look.size for look in prompt.objects}
    wanted |= {f"gravity {prompt.scene}": prompt.gravity, f"speed {prompt.scene}": prompt.speed}
    for name, value in wanted.items():
        if value is not None and value not in bins.get(name, {}):
            return f"there is no measure of {name}, {value!r}"
    return None


def nearest(found: float, values: dict[str, float]) -> str | None:
    """The value whose typical number is nearest; None of NaN."""
    return min(values, key=lambda name: abs(found - values[name])) if math.isfinite(found) else None


def falls(seen: Seen, named: list[Track]) -> bool:
    """Every object starts with hardly any speed and sinks by 10 px or more, further than it goes sideways."""
    for item in named:
        x, y = item.at.T
        down = np.nanmax(y) - first(y)
        if not (down >= 10 and np.nanmax(np.abs(x - first(x))) < down and np.abs(item.steps[:2, 1]).max() < 4):
            return False
    return True


def is_thrown(seen: Seen, named: list[Track]) -> bool:
    """It sets off upwards and sideways."""
    step, then = named[0].steps[:2]
    x, y = 1.5 * step - 0.5 * then  # at the start: gravity has not bent it yet
    return bool(abs(x) > 0.8 and y < -0.8)


def collides(seen: Seen, named: list[Track]) -> bool:
    """Two objects come together until they touch, and part or stop there."""
    if len(named) < 2:
        return False
    one, other = named[:2]
    gap = seen.apart(one, other)
    frame = int(np.nanargmin(gap)) if np.isfinite(gap).any() else 0
    came = gap[0] - gap[frame] >= 4 and frame >= 1
    near = seen.meets(one)[other.colour].any()
    # only just after it: the other may come back from a wall
    before, after = (
        np.nanmean(steps, axis=0) for steps in (other.steps[: max(1, frame - 1)], other.steps[frame : frame + 3])
    )
    return bool(came and near and np.linalg.norm(after - before) > 0.5)


def rolls(seen: Seen, named: list[Track]) -> bool:
    """It goes down and sideways along a line as steep as the world's ramps, close to a wall."""
    item = named[0]
    y = item.at[:, 1]
    down = y - first(y)
    late = np.flatnonzero(down > 0.8 * np.nanmax(down))
    if not np.nanmax(down) >= 4 or not len(late):
        return False
    end = max(2, late[0])
    way = item.at[end] - item.at[0]
    steep = math.degrees(math.atan2(way[1], abs(way[0])))
    return bool(15 <= steep <= 48 and np.nanmedian(seen.to_wall(item)) <= 2 * TOUCH)


def swings(seen: Seen, named: list[Track]) -> bool:
    """It moves on an arc around a point above it."""
    x, y = named[0].at[np.isfinite(named[0].at).all(1)].T
    if len(x) < 6 or np.ptp(x) < 8:
        return False
    (a, b, c), *_ = np.linalg.lstsq(np.stack([x, y, np.ones(len(x))], 1), x**2 + y**2, rcond=None)
    pivot = a / 2, b / 2
    radius = math.sqrt(max(0.0, c + pivot[0] ** 2 + pivot[1] ** 2))
    off = np.hypot(x - pivot[0], y - pivot[1]) - radius
    return bool(18 <= radius <= 45 and np.abs(off).max() < 1.5 and np.mean(y) > pivot[1])


def slides(seen: Seen, named: list[Track]) -> bool:
    """It moves sideways on one level and comes to rest."""
    item = named[0]
    x, y = item.at.T
    last = np.linalg.norm(item.steps[-2:], axis=1)
    return bool(np.nanmax(x) - np.nanmin(x) >= 8 and np.nanmax(y) - np.nanmin(y) <= 3 and np.nanmax(last) < 1.2)


def first(values: np.ndarray) -> float:
    """The first that is seen."""
    return float(values[np.isfinite(values)][0])


EVENTS: dict[str, Callable[[Seen, list[Track]], bool]] = {
    "fall": falls,
    "throw": is_thrown,
    "collide": collides,
    "ramp": rolls,
    "pendulum": swings,
    "slide": slides,
}


def pull(scene: str, seen: Seen, named: list[Track]) -> float:
    """How strong gravity looks, in a number that suits the scene; px per frame^2, of a pendulum 1 per frame^2."""
    item = named[0]
    bend = np.diff(item.at, n=2, axis=0)  # [F-2, 2]
    if scene == "pendulum":
        pivot = np.array([SIDE / 2, 8.0])
        angle = np.arctan2(*(item.at - pivot).T)
        lever = np.sin(angle[1:-1])
        usable = np.abs(lever) > 0.15
        return float(np.nanmedian(-np.diff(angle, n=2)[usable] / lever[usable])) if usable.any() else math.nan
    if scene == "ramp":
        speed = np.linalg.norm(item.steps, axis=1)
        return float(np.nanmean(np.diff(speed[:6])))
    met = np.logical_or.reduce(list(seen.meets(item).values()))
    free = ~(met[:-1] | met[1:])
    return float(np.nanmedian(bend[free, 1])) if free.any() else math.nan


def pace(scene: str, seen: Seen, named: list[Track]) -> float:
    """Way per frame of the fastest named object at the start."""
    return float(np.nanmax([np.linalg.norm(item.steps[:2], axis=1) for item in named]))


MEASURES: dict[str, Callable[[str, Seen, list[Track]], float]] = {"gravity": pull, "speed": pace}


# --- the rater -----------------------------------------------------------------------------------------------------


def see(frames: np.ndarray, rules: Rules) -> Seen | None:
    """What is seen in uint8 frames [F, H, W, 3]; None where there is nothing to judge."""
    if len(frames) < SHORTEST:
        return None
    seen = watch(frames, rules.palette)
    return seen if seen.tracks else None


def rate(sample: Sample, seen: Seen | None, prompt: Named, other: Named, rules: Rules) -> list[Score]:
    """SA and PC of one video, SA of the same video against another prompt, and the share of laws that it breaks.

    Where there is nothing to judge SA and PC are 1 and all laws are broken: no video is left out.
    """
    broken = laws(seen) if seen else dict.fromkeys(LAWS, math.inf)
    values = {
        "SA": semantic(seen, prompt, rules),
        "PC": commonsense(broken, rules.thresholds),
        "SA_other": semantic(seen, other, rules),
        "laws_broken": float(np.mean([broken[law] > limit for law, limit in rules.thresholds.items()])),
    }
    return [
        Score(sample.prompt_id, sample.index, sample.seed, metric, float(value), rater="physics", rule=RULES[metric])
        for metric, value in values.items()
    ]


def semantic(seen: Seen | None, prompt: Named, rules: Rules) -> int:
    """SA, 1-5."""
    if seen is None:
        return 1
    held = adherence(look_for(seen, prompt), rules.bins)
    return int(1 + 4 * np.mean(list(held.values())) + 1e-9)


RULES = {
    "SA": "1 + 4 x the share that holds of the prompt's count, colours, sizes, event, gravity, speed; rounded down",
    "PC": "5 while no law is broken more than in 99 % of real clips; 4, 3, 2, 1 beyond"
    f" {', '.join(f'{ratio:g}' for ratio in PASS_RATIOS)} times that",
    "SA_other": "SA of the same video against the next prompt of the bench, after the last the first",
    "laws_broken": f"share of the {len(LAWS)} laws that a video breaks more than 99 % of real clips do",
}
