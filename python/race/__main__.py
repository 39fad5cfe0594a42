"""`python -m race COMMAND ...`, which `torchrun -m race COMMAND ...` needs."""

import sys

from race.cli import main

sys.exit(main())
