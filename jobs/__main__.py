"""`python -m jobs` is `logpose`."""

import sys

from jobs.cli import main

sys.exit(main())
