"""Stands in for `python -m fvmd`: two folders of clips as pictures in, fvmd.json out, and no tracker."""

import argparse
import json
from pathlib import Path

from answers import started

parser = argparse.ArgumentParser()
parser.add_argument("--log_dir")
parser.add_argument("path", nargs=2)
given = parser.parse_args()
started("fvmd")
counts = [[len(list(clip.glob("*.png"))) for clip in sorted(Path(folder).iterdir())] for folder in given.path]
assert counts[0] == counts[1] and min(counts[0]) >= 16
Path(given.log_dir, "fvmd.json").write_text(json.dumps(float(len(counts[0]))))
