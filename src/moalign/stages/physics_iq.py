"""Physics-IQ, for a model that goes on from an image: look at its videos, then score them against the real footage.

    moalign physics-iq check --videos FOLDER --real physics-IQ-benchmark-verified/split-videos/testing/8FPS
    moalign physics-iq score --videos FOLDER --real ... --out FILE.json

Every scene whose files are whole is measured; finished scenes lie in FILE.json.parts, so a killed scoring goes on from
there. With any fault there is no score: the file says what is wrong and holds what could be measured.
"""

import hashlib
import json
import shutil
from pathlib import Path

from moalign import manifest, shards
from moalign.bench import physics_iq
from moalign.bench.physics_iq import Shot
from moalign.bench.preflight import Fault
from moalign.progress import track
from moalign.video import BadVideo


def check(videos: str, real: str, masks: str | None = None) -> int:
    """Print a line for each fault; 0 where there is none, else 1."""
    fps = physics_iq.real_fps(real)
    wanted = physics_iq.shots(videos, real, masks, fps)
    faults = physics_iq.preflight(wanted, fps)
    ready = sum(shot.whole(faults) for shot in wanted)
    print(f"{videos}: {ready} of {len(wanted)} videos can be scored at {fps} frames per second")
    told(faults)
    return int(bool(faults))


def score(videos: str, real: str, out: str, masks: str | None = None) -> int:
    """Write the metrics of every scene, and the scores where nothing is wrong; 0 with scores, else 1."""
    fps = physics_iq.real_fps(real)
    wanted = physics_iq.shots(videos, real, masks, fps)
    faults = physics_iq.preflight(wanted, fps)
    scenes: dict[str, list[Shot]] = {}
    for shot in wanted:
        scenes.setdefault(shot.scene, []).append(shot)
    whole = [scene for scene, of in scenes.items() if all(shot.whole(faults) for shot in of)]
    parts = shards.resumable(Path(f"{out}.parts"), manifest.code_version())
    measured = {}
    for scene in track(whole, "measure scenes"):
        try:
            measured[scene] = resumed(parts / f"{scene}.json", scenes[scene], fps)
        except BadVideo as error:
            faults.append(Fault("unreadable", scene, str(error)))
    scores = None
    if not faults and len(measured) == len(scenes):
        scores = physics_iq.totals([shot for scene in measured.values() for shot in scene.values()])
    made = {
        "benchmark": "Physics-IQ",
        "code": manifest.code_version(),
        "videos": videos,
        "real": real,
        "masks": masks or "computed",
        "fps": fps,
        "scores": scores,
        "not_measured": [scene for scene in scenes if scene not in measured],
        "faults": [f"{fault.kind} {fault.path}: {fault.detail}" for fault in faults],
        "scenes": measured,
    }
    manifest.write_text(out, json.dumps(made, indent=1) + "\n")
    if scores is None:
        told(faults)
        print(f"{out}: no score: {len(faults)} faults, {len(measured)} of {len(scenes)} scenes measured")
        return 1
    shutil.rmtree(parts)
    print(f"{out}: Physics-IQ Verified {scores['verified']:.2f}, original {scores['original']:.2f}")
    return 0


def resumed(part: Path, shots: list[Shot], fps: int) -> dict[str, dict]:
    """The measures of one scene by side; read from `part` if that was made of these very files."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for shot in shots for path in shot.files]
    key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    if part.exists():
        left = json.loads(part.read_text())
        if left["key"] == key:
            return left["sides"]
    sides = {shot.side: physics_iq.measure(shot, fps) for shot in shots}
    manifest.write_text(part, json.dumps({"key": key, "sides": sides}))
    return sides


def told(faults: list[Fault]) -> None:
    """Print them all."""
    for fault in faults:
        print(f"{fault.kind:10} {fault.path}: {fault.detail}")
