"""Whether two metrics.json agree: `python tests/same_metrics.py EXPECTED FOUND`.

On one machine they are equal byte for byte. Another processor rounds otherwise, so numbers may differ by 5 %, or by
0.05 where they are small; and where a number falls into steps, a video or two may fall to the other side of a limit.
Keys, counts and texts are the same everywhere.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

IN_STEPS = {"SA", "SA_other", "PC", "Joint", "dynamic", "still"}  # metrics of one video that are no measured quantity
TIPPED = 2  # steps by which a table's cell may differ, over all of its videos
BY_LIMITS = ("matched.", "base gate.")  # which videos they count depends on limits, so only their keys are compared


def differences(expected: Any, found: Any, path: str = "", slack: float = 0.05) -> list[str]:
    """Where two values part, one line each."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = []
        for key in sorted(expected.keys() | found.keys()):
            where = f"{path}.{key}".lstrip(".")
            if key not in expected or key not in found:
                lines.append(f"{where}: only {'found' if key in found else 'expected'}")
                continue
            steps = key in IN_STEPS and isinstance(expected[key], dict)
            lines += differences(expected[key], found[key], where, TIPPED / expected[key]["n"] if steps else slack)
        return lines
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{path}.{index}", slack)]
    if path.startswith(BY_LIMITS):
        return []
    if isinstance(expected, float) and isinstance(found, int | float):
        same = math.isclose(expected, found, rel_tol=0.05, abs_tol=slack + 1e-5)
    else:
        same = expected == found
    return [] if same else [f"{path}: expected {expected!r}, found {found!r}"]


if __name__ == "__main__":
    lines = differences(*(json.loads(Path(path).read_text()) for path in sys.argv[1:3]))
    print("\n".join(lines) or "metrics agree")
    sys.exit(bool(lines))
