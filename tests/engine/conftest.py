"""The engine and the sample model: made by the project's own commands where they are missing, for all tests here.

The model lies in a folder of its own, as it is trained for a third of the time only: these tests want words, not
answers, and the whole training took 196 s of CPU. `test_sample_model.py` does it.
"""

import os
from dataclasses import replace

import pytest
from rich.console import Console

from core.settings import Settings, load_settings
from functions.demo_setup import ensure_engine_and_model

_STEPS = 100


@pytest.fixture(scope="session")
def engine_settings() -> Settings:
    """Settings whose engines_path and models_path have what the tests need."""
    found = load_settings(os.environ)
    settings = replace(found, models_dir=str(found.models_path / "for-tests"))
    ensure_engine_and_model(Console(stderr=True), settings, training_steps=_STEPS)
    return settings
