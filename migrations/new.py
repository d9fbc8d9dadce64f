"""Draft the next revision: `python -m migrations.new "why"` compares the declared tables with an empty migrated database.

The draft is a proposal. Read it, and keep to expand-then-contract: code of the previous release is still running.
"""

import re
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config

import migrations.tables  # noqa: F401  fills the metadata that the draft is compared with
from core.database import open_database
from migrations.migrate import _FOLDER, head_revision_or_none, migrate


def main(message: str) -> None:
    """Write `versions/NNNN_message.py`."""
    head = head_revision_or_none()
    number = f"{int(head or 0) + 1:04d}"
    with tempfile.TemporaryDirectory() as folder:
        db = open_database(f"sqlite:///{Path(folder) / 'draft.db'}")
        if head is not None:
            migrate(db)
        with db.begin() as connection:
            config = Config()
            config.set_main_option("script_location", str(_FOLDER))
            config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
            config.attributes["connection"] = connection
            slug = re.sub(r"[^a-z0-9]+", " ", message.lower())
            command.revision(config, message=slug, autogenerate=True, rev_id=number)
        db.close()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or sys.exit('usage: python -m migrations.new "why"'))
