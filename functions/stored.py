"""What is stored, under the customer's key: the keyring is opened at the start, what was plain before is encrypted."""

from pathlib import Path

from access.keyring import Keyring, open_keyring
from access.sealed_files import seal_tree
from core.clock import Clock
from core.log import get_logger
from core.settings import Settings
from serving.online.opened import OpenedCopies

_log = get_logger(__name__)


def open_stored(settings: Settings, clock: Clock) -> Keyring | None:
    """The home's keyring; None without a customer's key. FareboxError says why it cannot be opened."""
    keyring = open_keyring(
        settings.keyring_path, settings.customer_key_file, settings.secret_path, clock.now_ms()
    )
    if keyring is None:
        return None
    OpenedCopies(settings.home, settings.opened_path, keyring).check()
    if not keyring.state.sealed_all:
        for folder in stored_folders(settings):
            seal_tree(folder, keyring, _log.info)
        keyring.note_all_sealed()
    return keyring


def stored_folders(settings: Settings) -> tuple[Path, Path]:
    """Where customers' files are: copies of code and models, and collected data."""
    return settings.home / "online", settings.collected_path
