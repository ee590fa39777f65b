"""`python -m lading.cli`, for where the `lading` script is not on PATH."""

import sys

from .app import main

sys.exit(main())
