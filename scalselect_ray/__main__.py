"""`python -m scalselect_ray`."""

import sys

from scalselect_ray.cli import main

sys.exit(main())
