"""`pytest -p tests.compiled_first`: the gateway's hot modules are imported compiled, where they are built."""

import pytest

from core.compiled import use
from functions.gateway.compiling import MODULES

if not use(MODULES):
    raise pytest.UsageError("nothing is compiled: make compile")
