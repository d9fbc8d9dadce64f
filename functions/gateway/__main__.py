"""The gateway process: `python -m functions.gateway`, with its hot modules compiled where they were."""

import sys

from core.compiled import use
from functions.gateway.compiling import MODULES

use(MODULES)

from functions.gateway.main import main  # noqa: E402  after it was said where modules are found

sys.exit(main())
