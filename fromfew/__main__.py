"""``python -m fromfew`` is the command line."""

import sys

from fromfew.cli import main

sys.exit(main())
