"""Whether two metrics.json agree: `python tests/same_metrics.py EXPECTED FOUND`.

On one machine they are equal byte for byte; another processor rounds otherwise, so numbers may differ by 5 %, or by
0.05 where they are small. Keys, counts and texts are the same everywhere.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    """Where two values part, one line each."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(expected.keys() | found.keys())
        lines = [differences(expected.get(key), found.get(key), f"{path}.{key}".lstrip(".")) for key in keys]
        return [line for part in lines for line in part]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{path}.{index}")]
    if isinstance(expected, float) and isinstance(found, int | float):
        same = math.isclose(expected, found, rel_tol=0.05, abs_tol=0.05)
    else:
        same = expected == found
    return [] if same else [f"{path}: expected {expected!r}, found {found!r}"]


if __name__ == "__main__":
    lines = differences(*(json.loads(Path(path).read_text()) for path in sys.argv[1:3]))
    print("\n".join(lines) or "metrics agree")
    sys.exit(bool(lines))
