"""The gateway process: `python -m functions.gateway`, with its hot modules compiled where they were."""

import sys

from core.compiled import use
from core.garbage import not_now
from functions.gateway.compiling import MODULES

use(MODULES)

with not_now():
    from functions.gateway.main import main  # after it was said where modules are found

sys.exit(main())
