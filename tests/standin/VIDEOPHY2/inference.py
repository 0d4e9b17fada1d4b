"""Stand-in for VideoPhy2's rater: csv `videopath,caption` in, the same with an index and `score` out."""

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
    rows.append([row["videopath"], row["caption"], float(1 + int(5 * share(given.task + Path(row["videopath"]).name)))])
with open(given.output_csv, "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["", "videopath", "caption", "score"])
    table.writerows([number, *row] for number, row in enumerate(spoilt(rows, 2, 7)))
