"""A training in small: a number that depends on every step, a checkpoint after each, SIGTERM ends it with status 75.

Files in its work folder steer it: `pace` holds seconds a step, `fail` how many more starts shall fail. `started` gets a
line per start: the step that it began at, and the GPUs that it saw.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS = 40


def told(path: Path, default: float) -> float:
    return float(path.read_text()) if path.exists() else default


work, out, shards = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
work.mkdir(parents=True, exist_ok=True)
state = work / "state.json"
now = json.loads(state.read_text()) if state.exists() else {"step": 0, "value": 1}
with open(work / "started", "a") as file:
    print(now["step"], os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
left = told(work / "fail", 0)
if left:
    (work / "fail").write_text(str(left - 1))
    sys.exit("train: told to fail")
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
seed = sum(int(Path(path).read_text()) for path in shards)
while now["step"] < STEPS:
    time.sleep(told(work / "pace", 0.01))
    now = {"step": now["step"] + 1, "value": (now["value"] * 6364136223846793005 + seed) % 2**61}
    if stop:
        time.sleep(told(work / "linger", 0))  # a real checkpoint takes seconds to write
    (work / "state.new").write_text(json.dumps(now))
    (work / "state.new").rename(state)
    if stop:
        print(f"train: stopped after step {now['step']}")
        sys.exit(75)
out.write_text(json.dumps(now) + "\n")
