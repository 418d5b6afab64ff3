"""`python -m ventoux` is the `ventoux` command."""

import sys

from ventoux.cli import main

sys.exit(main())
