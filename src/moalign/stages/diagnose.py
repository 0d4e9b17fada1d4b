"""How a run's videos move as a set, beside real clips: diagnostics, which no benchmark has and no table shows.

    moalign diagnose --samples results/S/samples/RUN/sSEED/BENCH/*.jsonl --clips results/S/clips/real/*.jsonl
                     --out FILE.json [--fvmd PYTHON --work FOLDER]

Distances between the distributions of what motion vectors say (`bench/codec.py`), and, with an interpreter that has the
package `fvmd`, its Frechet distance of tracked points. That package reads two sets of equally many clips of one length
as pictures, so as many real clips are taken as there are videos, or the other way round, chosen by hash.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from moalign import manifest, shards, video
from moalign.bench import codec, external
from moalign.bench.external import Task
from moalign.clips import Clips, load_clip, permutation, to_frames
from moalign.errors import Problem
from moalign.manifest import Sample
from moalign.progress import track

TRACKED = 16  # frames that fvmd follows points through; it leaves shorter clips out without a word


def run(samples: list[str], clips: list[str], out: str, fvmd: str | None = None, work: str | None = None) -> None:
    """Write the distances, beside how many videos and clips they are of.

    fvmd: interpreter of an environment with that package; work: folder for its pictures, needed with it.
    """
    if fvmd and not work:
        raise Problem("--work: missing; --fvmd needs a folder for the pictures that it reads")
    videos, F, fps = videos_of(samples)
    real = Clips(clips, "heldout")
    if not real.keys:
        raise Problem(f"{clips[0]}: no held-out clip in the {len(clips)} manifests given")
    size = video.probe(videos[0])
    count = min(len(videos), len(real.keys))
    made = [videos[number] for number in some(len(videos), count)]
    keys = [real.keys[number] for number in some(len(real.keys), count)]
    sets = {
        "samples": (video.read(path, list(range(F))) for path in made),
        "real": (to_frames(load_clip(*real.clips[key], F, fps, (size.height, size.width)) / 2 + 0.5) for key in keys),
    }
    pictures = None
    if fvmd:
        inputs = "".join(manifest.sha256(path) for path in (*samples, *clips))
        pictures = shards.resumable(Path(work) / "fvmd", f"{inputs} {count}")
    values = {name: measure(name, frames, count, pictures) for name, frames in sets.items()}
    found = {
        "diagnostics": "of sets, no benchmark's; lower is closer to the real clips",
        "code": manifest.code_version(),
        "videos": len(made),
        "frames": F,
        "fps": fps,
        "height": size.height,
        "width": size.width,
        "codec": {
            metric: {"samples": mean(values["samples"][metric]), "real": mean(values["real"][metric])} | asdict(apart)
            for metric, apart in codec.compare(values["samples"], values["real"]).items()
        },
    }
    if pictures is not None:
        found["fvmd"] = ask_fvmd(fvmd, pictures, F)
    manifest.write_text(out, json.dumps(found, indent=1) + "\n")
    for metric, row in found["codec"].items():
        print(
            f"{metric:14} samples {row['samples']:.3f}, real {row['real']:.3f}: distance {row['value']:.3f}"
            f" [{row['low']:.3f}, {row['high']:.3f}], by chance up to {row['chance']:.3f}"
        )
    if "fvmd" in found:
        print(f"{'fvmd':14} {found['fvmd']['value']:.1f}")


def videos_of(samples: list[str]) -> tuple[list[Path], int, float]:
    """A run's videos, in the order of their keys, with their frames and rate, which must be the same for all."""
    read = [manifest.read(path, Sample) for path in samples]
    rows = sorted(
        ((row.prompt_id, row.index), given.locate(row.file), row.frames, row.fps)
        for given in read
        for row in given.rows
    )
    shapes = {(frames, fps) for _, _, frames, fps in rows}
    if len(shapes) != 1:
        raise Problem(f"{samples[0]}: videos of {len(shapes)} lengths or rates; give one run's videos, of one bench")
    F, fps = shapes.pop()
    if F < codec.SHORTEST:
        raise Problem(f"{samples[0]}: videos of {F} frames; motion needs {codec.SHORTEST}")
    return [path for _, path, *_ in rows], F, fps


def some(of: int, count: int) -> list[int]:
    """`count` of so many, each once, by hash; ascending."""
    return sorted(permutation(0, 0, of)[:count].tolist())


def measure(name: str, videos: Iterable[np.ndarray], count: int, pictures: Path | None) -> dict[str, list[float]]:
    """Metric -> a number for each video; its frames below `pictures` too."""
    found: dict[str, list[float]] = {metric: [] for metric in codec.RULES}
    for number, frames in enumerate(track(videos, name, total=count)):
        for metric, value in codec.measure(frames).items():
            found[metric].append(value)
        if pictures is not None:
            folder = pictures / name / f"{number:05d}"
            folder.mkdir(parents=True, exist_ok=True)
            for place, frame in enumerate(frames):
                cv2.imwrite(str(folder / f"{place:03d}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return found


def ask_fvmd(python: str, pictures: Path, frames: int) -> dict:
    """What the package makes of the two folders of pictures."""
    if frames < TRACKED:
        raise Problem(f"--fvmd: videos of {frames} frames; it follows points through {TRACKED}, so leave it out")
    here = pictures.absolute()
    sets = (str(here / "samples"), str(here / "real"))
    task = Task("fvmd", [python, "-m", "fvmd", "--log_dir", str(here / "fvmd"), *sets], "fvmd.json")
    left = external.ask([task], pictures)["fvmd"]
    value = json.loads(left.read_text())
    if not isinstance(value, (int, float)) or not np.isfinite(value):
        raise Problem(f"{left}: {value!r} is no distance; see log.txt there")
    return {"value": value, "command": task.command, "versions": external.versions(python, "fvmd", "torch")}


def mean(values: list[float]) -> float:
    """Mean of some numbers, plain."""
    return float(np.mean(values))
