"""The engine and the sample model: made by the project's own commands where they are missing, for all tests here."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from core.settings import Settings, load_settings
from functions.demo_setup import ensure_engine_and_model


def _give_way() -> None:
    """To the tests of other workers, of which some measure time; on Linux this is about this thread and its children."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)


@pytest.fixture(scope="session")
def engine_settings() -> Settings:
    """Settings whose engines_path and models_path have what the tests need."""
    settings = load_settings(os.environ)
    with ThreadPoolExecutor(1, initializer=_give_way) as background:
        background.submit(ensure_engine_and_model, Console(stderr=True), settings).result()
    return settings
