"""Stand-in for VideoPhy2's rater: csv `videopath,caption` (or rule) in, the same with an index and `score` out."""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from answers import share, spoilt, started, tick

parser = argparse.ArgumentParser()
for name in ("--input_csv", "--checkpoint", "--output_csv", "--task"):
    parser.add_argument(name, required=True)
given = parser.parse_args()
started(given.task)
with open(given.input_csv, newline="") as file:
    asked = list(csv.DictReader(file))
rows = []
for row in asked:
    tick(len(rows))
    name, what = Path(row["videopath"]).name, row["rule" if given.task == "rule" else "caption"]
    answer = int(3 * share(name + what)) if given.task == "rule" else 1 + int(5 * share(given.task + name))
    rows.append([row["videopath"], what, float(answer)])
with open(given.output_csv, "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["", "videopath", "rule" if given.task == "rule" else "caption", "score"])
    table.writerows([number, *row] for number, row in enumerate(spoilt(rows, 2, 7)))
