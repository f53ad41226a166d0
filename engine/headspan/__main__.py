"""`python -m headspan`: the command line."""

import sys

from headspan.cli import main

sys.exit(main())
