"""Stands in for VBench-2.0's evaluate.py: one dimension, -1 for what it does not judge, and no model."""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from answers import ODD, share, started, tick

parser = argparse.ArgumentParser()
for flag in ("--videos_path", "--dimension", "--output_path"):
    parser.add_argument(flag, required=True)
given = parser.parse_args()
started(given.dimension)
rows = []
for done, name in enumerate(sorted(os.listdir(given.videos_path))):
    tick(done)
    if given.dimension == "Diversity" and not name.endswith("-0.mp4"):
        continue
    value = share(given.dimension + name)
    excluded = "excluded" in ODD and given.dimension == "Material" and value < 0.5
    rows.append({"video_path": os.path.join(given.videos_path, name), "video_results": -1 if excluded else value})
rows = rows[: -1 if "short" in ODD else None]
judged = [row["video_results"] for row in rows if row["video_results"] != -1]
mean = sum(judged) / len(judged)
Path(given.output_path).mkdir(exist_ok=True)
Path(given.output_path, f"{given.dimension}_eval_results.json").write_text(json.dumps({given.dimension: [mean, rows]}))
