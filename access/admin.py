"""The bootstrap admin key: made on first start, kept in the home's `admin.key` for who may read that file."""

from pathlib import Path

from sqlalchemy import Connection

from access import store
from access.files import SecretFileError, read_secret_file, write_secret_file
from access.keys import hash_key, key_of, looks_like_key, make_key

_DO_THIS = "Put the original back, or delete the file: the next start makes a new key and revokes the old one"


def ensure_admin_key(connection: Connection, path: Path, now_ms: int) -> bool:
    """Make the admin key when there is no file (revoking older ones); True when one was made.

    The caller's transaction may still be lost after the file was written. So a well-formed key that no admin
    key row contradicts is taken over: that is the first start, cut short. After a lost *renewal* the old row
    is still there and the message says what to do.
    """
    text = read_secret_file(path, "admin key")
    if text is None:
        key = make_key("admin")
        store.revoke_admin_keys(connection, now_ms)
        store.add_admin_key(connection, key, now_ms)
        write_secret_file(path, key.text, "admin key")
        return True
    if not looks_like_key(text) or not text.startswith("fbx_admin_"):
        raise SecretFileError(f"{path} does not hold an admin key. {_DO_THIS}", param=str(path))
    status = store.key_status(connection, hash_key(text), now_ms)
    if status == "unknown" and not store.has_admin_key(connection):
        store.add_admin_key(connection, key_of(text), now_ms)
        return True
    if status != "ok":
        why = "this installation does not know" if status == "unknown" else f"has been {status}"
        raise SecretFileError(f"{path} holds an admin key that {why}. {_DO_THIS}", param=str(path))
    return False
