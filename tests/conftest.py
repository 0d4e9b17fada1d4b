"""For all tests: no wandb unless a test asks for it, and no test that fails because a machine is busy."""

import os

from hypothesis import settings

os.environ.setdefault("WANDB_MODE", "disabled")
settings.register_profile("repo", deadline=None)
settings.load_profile("repo")
