"""`vbench evaluate` and `vbench static_filter`."""

import argparse
import json
import os
import shutil
from pathlib import Path

from answers import ODD, share, started, tick

REGISTRY = Path(os.environ["VBENCH_REGISTRY"])


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    evaluate = commands.add_parser("evaluate")
    for flag in ("--videos_path", "--dimension", "--output_path"):
        evaluate.add_argument(flag, required=True)
    evaluate.add_argument("--load_ckpt_from_local", type=bool)
    evaluate.set_defaults(run=rate)
    keep = commands.add_parser("static_filter")
    for flag in ("--videos_path", "--result_path"):
        keep.add_argument(flag, required=True)
    keep.set_defaults(run=static_filter)
    given = parser.parse_args()
    given.run(given)


def prompts_of(dimension: str) -> list[str]:
    return [row["prompt_en"] for row in json.loads(REGISTRY.read_text()) if dimension in row["dimension"]]


def rate(given: argparse.Namespace) -> None:
    """A warning alone for a missing video, and the mean of the others, as there."""
    started(given.dimension)
    names, rows = set(os.listdir(given.videos_path)), []
    for prompt in prompts_of(given.dimension):
        for index in range(5):
            if (name := f"{prompt}-{index}.mp4") in names:
                tick(len(rows))
                value = share(given.dimension + name)
                if given.dimension == "human_action":
                    value = value > 0.5
                if given.dimension == "imaging_quality":
                    value *= 100
                rows.append({"video_path": os.path.join(given.videos_path, name), "video_results": value})
    if "nan" in ODD:
        rows[1]["video_results"] = float("nan")
    if "short" in ODD:
        rows = rows[:-1]
    if "shuffled" in ODD:
        rows.sort(key=lambda row: share(row["video_path"]))
    scale = 100 if given.dimension == "imaging_quality" else 1
    mean = sum(row["video_results"] for row in rows) / len(rows) / scale
    Path(given.output_path).mkdir(exist_ok=True)
    Path(given.output_path, "results_t_eval_results.json").write_text(json.dumps({given.dimension: [mean, rows]}))
    Path(given.output_path, "results_t_full_info.json").write_text(REGISTRY.read_text())


def static_filter(given: argparse.Namespace) -> None:
    """Keeps the first five of a prompt that stand still, and numbers them anew."""
    started("static_filter")
    kept = {prompt: {"static_count": 0, "static_path": []} for prompt in prompts_of("temporal_flickering")}
    for path in sorted(Path(given.videos_path).glob("*.mp4")):
        prompt = path.stem.rpartition("-")[0]
        if prompt in kept and kept[prompt]["static_count"] < 5 and share(path.name) < 0.7:
            kept[prompt]["static_count"] += 1
            kept[prompt]["static_path"].append(str(path))
    Path(given.result_path, "filtered_static_video.json").write_text(json.dumps(kept))
    target = Path(given.result_path, "filtered_videos")
    target.mkdir()
    for prompt, found in kept.items():
        for number, path in enumerate(found["static_path"]):
            shutil.copy(path, target / f"{prompt}-{number}.mp4")
