"""The engine and the sample model: made by the project's own commands where they are missing, for all tests here."""

import os

import pytest
from rich.console import Console

from core.settings import Settings, load_settings
from functions.demo_setup import ensure_engine_and_model


@pytest.fixture(scope="session")
def engine_settings() -> Settings:
    """Settings whose engines_path and models_path have what the tests need."""
    settings = load_settings(os.environ)
    ensure_engine_and_model(Console(stderr=True), settings)
    return settings
