"""Stand-in for VideoPhy's rater: appends `videopath, prompt, p(Yes)` without a header, row by row."""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from answers import share, spoilt, started, tick

parser = argparse.ArgumentParser()
for name in ("--input_csv", "--output_csv", "--checkpoint"):
    parser.add_argument(name, required=True)
given = parser.parse_args()
started(Path(given.input_csv).stem)
with open(given.input_csv, newline="") as file:
    asked = list(csv.DictReader(file))
rows = [[row["videopath"], row["caption"], share(row["caption"] + row["videopath"])] for row in asked]
for done, row in enumerate(spoilt(rows, 2, 1.5)):
    tick(done)
    with open(given.output_csv, "a", newline="") as file:
        csv.writer(file).writerow(row)
