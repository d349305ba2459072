"""``python -m dtl.pipeline``."""

import sys

from dtl.pipeline import main

sys.exit(main())
