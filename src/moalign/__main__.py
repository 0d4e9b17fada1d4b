"""`python -m moalign` and `torchrun -m moalign`."""

import sys

from moalign.cli import main

sys.exit(main())
