"""The keyring: the keys that stored things are encrypted with, themselves encrypted for the customer's key.

Envelope encryption in the age format (https://age-encryption.org/v1, read and written by `pyrage`). The customer's key
is an age identity in a file that the customer provides; it opens `HOME/keyring.json` and nothing else. In there are the
secret that sealed texts are under (`sealer.py`) and the *data keys*: age identities, the first of which is in use, the
others opening what was encrypted before. So a new customer's key means that one small file is written anew. The public
half of the data key in use stands in the open: who only writes, as the gateway does, needs no secret.
"""

import base64
import binascii
import json
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from access.files import read_secret_file, write_secret_file
from access.sealer import ensure_secret
from core.errors import FareboxError

if TYPE_CHECKING:  # imported when first used: the gateway starts without it
    from pyrage.x25519 import Identity, Recipient

MAX_CUSTOMER_KEYS: Final = 100
MAX_DATA_KEYS: Final = 1000
MAX_KEYRING_BYTES: Final = 1024 * 1024
_MAX_KEY_FILE_BYTES: Final = 64 * 1024
_VERSION: Final = 1
_WHAT: Final = "keyring"


class CustomerKeyError(FareboxError):
    """The customer's key is missing, is none, or is another one than the keyring is encrypted for."""

    status, code = 409, "customer_key_unusable"


class NotOurs(FareboxError):
    """Something does not open with any of the keyring's data keys, or is damaged."""

    status, code = 422, "cannot_be_decrypted"


@dataclass(frozen=True, slots=True)
class KeyringState:
    """What may be shown. Keys are the public halves (`age1…`); times are epoch milliseconds."""

    customer_key: str
    data_key: str
    data_keys: int
    made_ms: int
    rotated_ms: int
    sealed_all: bool  # what was stored before there was a customer's key is encrypted too


class PublicKey:
    """The data key in use, for who encrypts and never decrypts. Follows the keyring when it is rotated."""

    def __init__(self, keyring: Path) -> None:
        self._path = keyring
        self._seen: tuple[int, int] | None = None
        self._recipient: Recipient | None = None

    def seal(self, data: bytes) -> bytes:
        """`data` encrypted. OSError, ValueError: there is no keyring, or it is damaged."""
        from pyrage import encrypt

        return encrypt(data, [self._current()])

    def seal_line(self, data: bytes) -> bytes:
        """`data` encrypted, as one line of base64."""
        return base64.b64encode(self.seal(data)) + b"\n"

    def _current(self) -> "Recipient":
        from pyrage.x25519 import Recipient

        found = os.stat(self._path)
        mark = (found.st_mtime_ns, found.st_ino)
        if self._recipient is None or mark != self._seen:
            self._recipient = Recipient.from_str(_parsed(self._path.read_text("utf-8"))["data_key"])
            self._seen = mark
        return self._recipient


class Keyring:
    """An open keyring. From any thread."""

    def __init__(self, path: Path, key_file: Path, header: dict[str, Any], keys: dict[str, Any]) -> None:
        self._path, self._key_file = path, key_file
        self._header, self._keys = header, keys
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        return f"Keyring({self._header['data_key']})"

    @property
    def secret(self) -> bytes:
        """Of the sealer: 256 bits."""
        return bytes.fromhex(self._keys["secret"])

    @property
    def state(self) -> KeyringState:
        """A snapshot."""
        header = self._header
        return KeyringState(
            header["customer_key"],
            header["data_key"],
            len(self._keys["data_keys"]),
            header["made_ms"],
            header["rotated_ms"],
            header["sealed_all"],
        )

    def seal_stream(self, source: BufferedIOBase, target: BufferedIOBase) -> None:
        """Encrypt all of `source`. OSError as the two raise it."""
        from pyrage import EncryptError, encrypt_io
        from pyrage.x25519 import Recipient

        try:
            encrypt_io(source, target, [Recipient.from_str(self._header["data_key"])])
        except EncryptError as error:  # what the two raised is told in its words
            raise OSError(str(error)) from error

    def open_stream(self, source: BufferedIOBase, target: BufferedIOBase) -> None:
        """Decrypt all of `source`; NotOurs when it does not open: `target` may then hold a part."""
        from pyrage import DecryptError, decrypt_io

        try:
            decrypt_io(source, target, self._identities())
        except DecryptError as error:
            raise _not_ours(error) from error
        except OSError as error:
            if error.errno is None:  # how pyrage tells that a later piece is damaged
                raise _not_ours(error) from error
            raise

    def open(self, data: bytes) -> bytes:
        """What `PublicKey.seal` made of it. NotOurs."""
        from pyrage import DecryptError, decrypt

        try:
            return decrypt(data, self._identities())
        except DecryptError as error:
            raise _not_ours(error) from error

    def open_line(self, line: bytes) -> bytes:
        """What `PublicKey.seal_line` made of it. NotOurs."""
        try:
            return self.open(base64.b64decode(line.strip(), validate=True))
        except binascii.Error as error:
            raise _not_ours(error) from error

    def rotate(self, now_ms: int) -> KeyringState:
        """Read the customer's key anew, encrypt the keyring for it, and use a new data key from now on.

        The file's first key counts; CustomerKeyError when there is none, and nothing has changed then.
        """
        with self._turn:
            customer = read_customer_keys(self._key_file)[0]
            if len(self._keys["data_keys"]) >= MAX_DATA_KEYS:
                raise CustomerKeyError(
                    f"the keyring holds {MAX_DATA_KEYS} data keys already, which is the most"
                )
            data_keys = [_new_key(), *self._keys["data_keys"]]
            self._write(customer, {**self._keys, "data_keys": data_keys}, rotated_ms=now_ms)
            return self.state

    def note_all_sealed(self) -> None:
        """From now on nothing is stored that is not encrypted."""
        with self._turn:
            self._write(read_customer_keys(self._key_file)[0], self._keys, sealed_all=True)

    def _write(self, customer: "Identity", keys: dict[str, Any], **changes: Any) -> None:
        header = {
            **self._header,
            "customer_key": str(customer.to_public()),
            "data_key": _public(keys["data_keys"][0]),
            **changes,
        }
        _store(self._path, header, keys, customer)
        self._header, self._keys = header, keys

    def _identities(self) -> "list[Identity]":
        from pyrage.x25519 import Identity

        return [Identity.from_str(each) for each in self._keys["data_keys"]]


def open_keyring(path: Path, key_file: str, secret_path: Path, now_ms: int) -> Keyring | None:
    """The home's keyring, made on first use; None when there is no customer's key and never was.

    A keyring that is encrypted for another key of the file than its first is rotated. CustomerKeyError says what is
    wrong.
    """
    found = read_keyring(path, key_file)
    if not key_file:
        return None
    customer = read_customer_keys(Path(key_file))[0]
    if found is None:
        return _made(path, Path(key_file), secret_path, customer, now_ms)
    _forget_secret_file(secret_path, found.secret)
    if found.state.customer_key != str(customer.to_public()):
        found.rotate(now_ms)
    return found


def read_keyring(path: Path, key_file: str) -> Keyring | None:
    """The keyring as it is; None when there is none. Changes nothing. CustomerKeyError: it does not open."""
    text = read_secret_file(path, _WHAT, MAX_KEYRING_BYTES)
    if text is None:
        return None
    document = _parsed(text)
    if not key_file:
        raise CustomerKeyError(
            f"what is stored here is encrypted under the customer's key {document['customer_key']}: set "
            "FAREBOX_CUSTOMER_KEY_FILE to the file that holds it",
            param="FAREBOX_CUSTOMER_KEY_FILE",
        )
    return _opened(path, Path(key_file), document, read_customer_keys(Path(key_file)))


def read_customer_keys(path: Path) -> "list[Identity]":
    """The keys in the customer's file, as `age-keygen` writes it: one a line, `#` begins a comment. The first is in use.

    CustomerKeyError names the line.
    """
    from pyrage import IdentityError
    from pyrage.x25519 import Identity

    text = read_secret_file(path, "customer's key", _MAX_KEY_FILE_BYTES, is_ours=False)
    if text is None:
        raise _bad_file(path, "is not there")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            found.append(Identity.from_str(line))
        except IdentityError:
            raise _bad_file(path, f"line {number}: expected a key (AGE-SECRET-KEY-1…)") from None
    if not found:
        raise _bad_file(path, "holds no key")
    if len(found) > MAX_CUSTOMER_KEYS:
        raise _bad_file(path, f"holds {len(found)} keys; {MAX_CUSTOMER_KEYS} at most")
    return found


def new_customer_key() -> tuple[str, str]:
    """The secret and the public half of a new one."""
    made = _new_key()
    return made, _public(made)


def _bad_file(path: Path, what: str) -> CustomerKeyError:
    return CustomerKeyError(
        f"FAREBOX_CUSTOMER_KEY_FILE: {path} {what}. `farebox customer-key new FILE` makes one, as does age-keygen",
        param="FAREBOX_CUSTOMER_KEY_FILE",
    )


def _made(path: Path, key_file: Path, secret_path: Path, customer: "Identity", now_ms: int) -> Keyring:
    # In the open until the keyring has it: a start that is cut short loses nothing.
    secret = ensure_secret(secret_path)
    keys: dict[str, Any] = {"secret": secret.hex(), "data_keys": [_new_key()]}
    header = {
        "version": _VERSION,
        "customer_key": str(customer.to_public()),
        "data_key": _public(keys["data_keys"][0]),
        "made_ms": now_ms,
        "rotated_ms": now_ms,
        "sealed_all": False,
    }
    _store(path, header, keys, customer)
    _forget_secret_file(secret_path, secret)
    return Keyring(path, key_file, header, keys)


def _opened(path: Path, key_file: Path, document: dict[str, Any], customer: "Sequence[Identity]") -> Keyring:
    from pyrage import DecryptError, decrypt

    try:
        plain = decrypt(document["keys"].encode(), list(customer))
    except DecryptError:
        raise CustomerKeyError(
            f"FAREBOX_CUSTOMER_KEY_FILE: what is stored in {path.parent} is encrypted under the customer's key "
            f"{document['customer_key']}, which is none of the {len(customer)} in {key_file}. To change the key put the "
            "new one into the first line and keep the old one below it",
            param="FAREBOX_CUSTOMER_KEY_FILE",
        ) from None
    header = {name: value for name, value in document.items() if name != "keys"}
    return Keyring(path, key_file, header, json.loads(plain))


def _store(path: Path, header: dict[str, Any], keys: dict[str, Any], customer: "Identity") -> None:
    """One file, replaced as a whole: there is no moment at which keys and their wrapping do not fit."""
    from pyrage import encrypt

    wrapped = encrypt(json.dumps(keys).encode(), [customer.to_public()], armored=True)
    write_secret_file(path, json.dumps({**header, "keys": wrapped.decode()}), _WHAT)


def _forget_secret_file(path: Path, secret: bytes) -> None:
    """The keyring has it: it must not lie about in the open. One that is another is left, and never used."""
    text = read_secret_file(path, "secret")
    if text is not None and secrets.compare_digest(text.encode(), secret.hex().encode()):
        path.unlink()


def _parsed(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
        fits = document["version"] == _VERSION and all(
            isinstance(document[name], str) for name in ("customer_key", "data_key", "keys")
        )
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise CustomerKeyError(
            "keyring.json is damaged, or of a newer version of Farebox: put the original back from a backup",
            code="keyring_damaged",
        )
    return document  # type: ignore[no-any-return]


def _new_key() -> str:
    from pyrage.x25519 import Identity

    return str(Identity.generate())


def _public(key: str) -> str:
    from pyrage.x25519 import Identity

    return str(Identity.from_str(key).to_public())


def _not_ours(error: Exception) -> NotOurs:
    return NotOurs(f"it does not open with the data keys of this home, or is damaged: {error}"[:300])
