"""For all tests: no wandb unless asked for, the same examples each time, no failure because a machine is busy."""

import os

from hypothesis import settings

os.environ.setdefault("WANDB_MODE", "disabled")
settings.register_profile("repo", deadline=None, derandomize=True)
settings.load_profile("repo")
