"""Stand-in for VideoPhy's own preparation: one csv for each question, its template around the caption."""

import argparse
import csv
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("--input_csv", "--output_folder"):
    parser.add_argument(name, required=True)
given = parser.parse_args()
with open(given.input_csv, newline="") as file:
    asked = list(csv.DictReader(file))
for name in ("sa", "physics"):
    with open(Path(given.output_folder) / f"{name}_testing.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["videopath", "caption"])
        table.writerows([row["videopath"], f"Human: {name}? {row['caption']}\nAI: "] for row in asked)
