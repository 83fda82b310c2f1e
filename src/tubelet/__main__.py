"""`python -m tubelet` is the command `tubelet`."""

import sys

from tubelet.cli import main

sys.exit(main())
