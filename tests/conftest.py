"""For all tests: no wandb unless a test asks for it."""

import os

os.environ.setdefault("WANDB_MODE", "disabled")
