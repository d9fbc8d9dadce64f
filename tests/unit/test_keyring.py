"""The keyring, files under it, and decrypted copies: what opens, what does not, and what a cut-short run leaves."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyrage
import pytest

from access.files import write_secret_file
from access.keyring import (
    MAX_DATA_KEYS,
    CustomerKeyError,
    Keyring,
    NotOurs,
    PublicKey,
    new_customer_key,
    open_keyring,
    read_keyring,
)
from access.sealed_files import SEALED, SEALED_LINES, is_stored, open_file, opened_name, seal_file, seal_tree
from access.sealer import Sealer, ensure_secret
from core.errors import Unavailable
from serving.online import copies
from serving.online.opened import OpenedCopies, OpenedDirUnusable
from serving.online.spec import DeploymentSpec

NOW = 1_800_000_000_000


def key_file(folder: Path, *keys: str) -> str:
    path = folder / "customer.key"
    write_secret_file(path, "# of the customer\n" + "\n".join(keys), "test")
    return str(path)


def opened(home: Path, file: str, now_ms: int = NOW) -> Keyring:
    found = open_keyring(home / "keyring.json", file, home / "secret.key", now_ms)
    assert found is not None
    return found


def silent(_: str) -> None:
    return None


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return opened(tmp_path, key_file(tmp_path, new_customer_key()[0]))


def test_the_secret_moves_into_the_keyring(tmp_path: Path) -> None:
    """What was sealed before opens after; the file in the open is gone, also when the first start was cut short."""
    secret = ensure_secret(tmp_path / "secret.key")
    sealed = Sealer(secret).seal("fbx_ep_x", "key_1")
    key, public = new_customer_key()
    file = key_file(tmp_path, key)
    made = opened(tmp_path, file)
    assert not (tmp_path / "secret.key").exists()
    assert made.state.customer_key == public
    assert made.state.rotated_ms == NOW
    (tmp_path / "secret.key").write_text(secret.hex())  # killed before it was removed
    assert Sealer(opened(tmp_path, file).secret).open(sealed, "key_1") == "fbx_ep_x"
    assert not (tmp_path / "secret.key").exists()
    text = (tmp_path / "keyring.json").read_text()
    assert (tmp_path / "keyring.json").stat().st_mode & 0o777 == 0o600
    assert secret.hex() not in text
    assert "AGE-SECRET-KEY" not in text + repr(made)
    (tmp_path / "secret.key").write_text("00" * 32)  # somebody's other file is not ours to remove
    opened(tmp_path, file)
    assert (tmp_path / "secret.key").exists()


def test_without_a_key_there_is_no_keyring(tmp_path: Path) -> None:
    assert open_keyring(tmp_path / "keyring.json", "", tmp_path / "secret.key", NOW) is None
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_missing_or_another_is_refused(tmp_path: Path) -> None:
    key, public = new_customer_key()
    file = key_file(tmp_path, key)
    opened(tmp_path, file)
    before = (tmp_path / "keyring.json").read_bytes()
    for given, words in (("", f"{public}: set FAREBOX_CUSTOMER_KEY_FILE"), (file + "-not", "is not there")):
        with pytest.raises(CustomerKeyError, match=words):
            opened(tmp_path, given)
    for keys, words in (
        ([new_customer_key()[0]], "none of the 1 in"),
        ([], "holds no key"),
        ([key, "AGE-SECRET-KEY-1NO"], "line 3: expected a key"),
        ([public], "line 2: expected a key"),
        ([key] * 101, "101 keys; 100 at most"),
    ):
        with pytest.raises(CustomerKeyError, match=words):
            opened(tmp_path, key_file(tmp_path, *keys))
    assert (tmp_path / "keyring.json").read_bytes() == before
    assert opened(tmp_path, key_file(tmp_path, key)).state.customer_key == public


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 2}', '{"version": 1, "customer_key": 5}'])
def test_a_damaged_keyring_is_refused(tmp_path: Path, text: str) -> None:
    file = key_file(tmp_path, new_customer_key()[0])
    (tmp_path / "keyring.json").write_text(text)
    with pytest.raises(CustomerKeyError, match=r"keyring\.json is damaged"):
        opened(tmp_path, file)


def test_rotation(tmp_path: Path) -> None:
    """By the file at a start or by command; what was stored before still opens, the old key opens no more."""
    (old, old_public), (new, new_public), (third, third_public) = [new_customer_key() for _ in range(3)]
    file = key_file(tmp_path, old)
    keyring = opened(tmp_path, file)
    writer = PublicKey(tmp_path / "keyring.json")
    first, secret = writer.seal_line(b"before"), keyring.secret
    key_file(tmp_path, new, old)
    rotated = opened(tmp_path, file, NOW + 1)
    assert (rotated.state.customer_key, rotated.state.data_keys) == (new_public, 2)
    assert rotated.state.rotated_ms == NOW + 1
    second = writer.seal_line(b"after")
    key_file(tmp_path, third)
    assert rotated.rotate(NOW + 2).customer_key == third_public, "while it runs the old one need not be there"
    assert [rotated.open_line(each) for each in (first, second)] == [b"before", b"after"]
    again = opened(tmp_path, file)
    assert [again.open_line(each) for each in (first, second)] == [b"before", b"after"]
    assert again.secret == secret
    with pytest.raises(NotOurs):
        keyring.open_line(second)  # the data key is new too
    for gone, public in ((old, old_public), (new, new_public)):
        with pytest.raises(CustomerKeyError, match="none of the 1"):
            opened(tmp_path, key_file(tmp_path, gone))
        assert public not in (tmp_path / "keyring.json").read_text()


def test_a_rotation_that_fails_changes_nothing(
    keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, state = (tmp_path / "keyring.json").read_bytes(), keyring.state
    kept = (tmp_path / "customer.key").read_text()
    (tmp_path / "customer.key").write_text("nonsense")
    with pytest.raises(CustomerKeyError, match="line 1"):
        keyring.rotate(NOW + 1)
    (tmp_path / "customer.key").write_text(kept)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match="No space"):
        keyring.rotate(NOW + 1)
    monkeypatch.undo()
    assert (tmp_path / "keyring.json").read_bytes() == before
    assert keyring.state == state
    monkeypatch.setattr("access.keyring.MAX_DATA_KEYS", 1)
    assert MAX_DATA_KEYS == 1000
    with pytest.raises(CustomerKeyError, match="is the most"):
        keyring.rotate(NOW + 1)


def test_reading_changes_nothing(tmp_path: Path) -> None:
    """Who decrypts beside a running platform must not rotate under it."""
    old, new = new_customer_key()[0], new_customer_key()[0]
    opened(tmp_path, key_file(tmp_path, old))
    before = (tmp_path / "keyring.json").read_bytes()
    found = read_keyring(tmp_path / "keyring.json", key_file(tmp_path, new, old))
    assert found is not None
    assert (tmp_path / "keyring.json").read_bytes() == before


def test_what_is_damaged_does_not_open(keyring: Keyring, tmp_path: Path) -> None:
    sealed = PublicKey(tmp_path / "keyring.json").seal(b"x" * 200_000)
    assert keyring.open(sealed) == b"x" * 200_000
    stranger = pyrage.encrypt(b"x", [pyrage.x25519.Identity.generate().to_public()])
    damaged = sealed[:100_000] + bytes([sealed[100_000] ^ 1]) + sealed[100_001:]
    for wrong in (b"", b"x", sealed[:-1], sealed[:50], damaged, stranger):
        with pytest.raises(NotOurs):
            keyring.open(wrong)
        with pytest.raises(NotOurs):
            keyring.open_stream(io.BytesIO(wrong), io.BytesIO())
    with pytest.raises(NotOurs):
        keyring.open_line(b"no base64!\n")


class Full(io.BytesIO):
    def write(self, _: Any) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_as_such(keyring: Keyring) -> None:
    with pytest.raises(OSError, match="No space left"):
        keyring.seal_stream(io.BytesIO(b"x" * 200_000), Full())
    sealed = io.BytesIO()
    keyring.seal_stream(io.BytesIO(b"x" * 200_000), sealed)
    sealed.seek(0)
    with pytest.raises(OSError, match="No space left"):
        keyring.open_stream(sealed, Full())


def test_what_was_stored_in_the_open_is_encrypted(keyring: Keyring, tmp_path: Path) -> None:
    """Whatever the files are called, and wherever the run before was cut short; not twice."""
    folder = tmp_path / "online"
    given = {
        "code/a.py": b"print(1)",
        "code/x": b"plain x",
        "code/x.age": b"somebody's own",
        "model/w": b"w" * 100_000,
    }
    for name, data in given.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "code/a.py").chmod(0o750)
    (folder / "code/lines.agelines").write_bytes(PublicKey(tmp_path / "keyring.json").seal_line(b"one"))
    seal_file(folder / "model/w", keyring)
    (folder / "model/w").write_bytes(given["model/w"])  # killed before it was removed
    (folder / "model/v.age-unfinished").write_bytes(b"half")  # killed while it was written
    assert seal_tree(folder, keyring, silent) == 4
    assert seal_tree(folder, keyring, silent) == 0
    names = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
    sealed = [f"{name}{SEALED}" for name in given]
    assert names == sorted([*sealed, "code/lines.agelines"])
    for name, data in given.items():
        assert is_stored(folder / name)
        assert data not in (folder / f"{name}{SEALED}").read_bytes()
        open_file(folder / f"{name}{SEALED}", tmp_path / "out" / name, keyring)
        assert (tmp_path / "out" / name).read_bytes() == data
    assert (tmp_path / "out/code/a.py").stat().st_mode & 0o777 == 0o750
    open_file(folder / f"code/lines{SEALED_LINES}", tmp_path / "out/lines", keyring)
    assert (tmp_path / "out/lines").read_bytes() == b"one"
    assert not is_stored(folder / "code/nothing")
    names = ["x.age", "x.agelines", "x.age.age", "x.age.agelines", "x.agelines.age", "x"]
    assert [opened_name(each) for each in names] == ["x", "x", "x.age", "x.age", "x.agelines", "x"]


def test_a_file_that_does_not_open_leaves_nothing(keyring: Keyring, tmp_path: Path) -> None:
    (tmp_path / "bad.age").write_bytes(b"no age file")
    with pytest.raises(NotOurs, match=r"bad\.age: it does not open"):
        open_file(tmp_path / "bad.age", tmp_path / "out" / "bad", keyring)
    assert list((tmp_path / "out").iterdir()) == []


# --- copies, and where instances run from -----------------------------------------------------------


@pytest.fixture
def stored(keyring: Keyring, tmp_path: Path) -> DeploymentSpec:
    """A deployment whose encrypted copies are in the home."""
    mine = tmp_path / "mine"
    for name, text in (
        ("code/score.py", "def run(): ..."),
        ("iris/MLmodel", "flavors: {}"),
        ("iris/data/w", "w" * 9),
    ):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(text)
    staged = copies.stage(tmp_path, str(mine / "code"), str(mine / "iris"), keyring=keyring)
    plain = copies.stage(tmp_path / "plain", str(mine / "code"), str(mine / "iris"))
    assert staged is not None
    assert plain is not None
    assert (staged.code_digest, staged.model_digest) == (plain.code_digest, plain.model_digest)
    final = copies.settle(staged.folder, tmp_path, "dep_1", 1)
    files = sorted(str(each.relative_to(final)) for each in final.rglob("*") if each.is_file())
    assert files == ["code/score.py.age", "model/iris/MLmodel.age", "model/iris/data/w.age"]
    return DeploymentSpec(
        name="blue", kind="script", code_path=str(final / "code"), model_path=str(final / "model/iris")
    )


def test_copies_are_opened_for_who_runs_from_them(
    keyring: Keyring, stored: DeploymentSpec, tmp_path: Path
) -> None:
    root = tmp_path / "opened"
    found = OpenedCopies(tmp_path, root, keyring)
    moved = found.moved(stored)
    assert not root.exists(), "asked for the paths only"
    described = found.describe(stored.model_path)
    assert (described / "MLmodel").read_text() == "flavors: {}"
    assert not (described / "data").exists()
    found.open(stored, silent)
    assert (Path(moved.code_path) / "score.py").read_text() == "def run(): ..."
    assert (Path(moved.model_path) / "data" / "w").read_text() == "w" * 9
    assert root.stat().st_mode & 0o777 == 0o700
    found.forget({"dep_1/1"}, 0)
    assert Path(moved.code_path).is_dir()
    found.forget(())
    assert Path(moved.code_path).is_dir(), "an instance that has just begun is in no list"
    found.forget((), 0)
    assert [each.name for each in root.iterdir()] == [".lock"]
    found.open(replace(stored, code_path="", model_path="/elsewhere/model"), silent)
    assert (
        found.moved(replace(stored, code_path="", model_path="/elsewhere/model")).model_path
        == "/elsewhere/model"
    )


def test_what_was_half_opened_is_opened_again(
    keyring: Keyring, stored: DeploymentSpec, tmp_path: Path
) -> None:
    found = OpenedCopies(tmp_path, tmp_path / "opened", keyring)

    def stop(text: str) -> None:
        if "2 of 3" in text:
            raise Unavailable("stopped")

    with pytest.raises(Unavailable, match="stopped"):
        found.open(stored, stop)
    found.open(stored, silent)
    assert (Path(found.moved(stored).model_path) / "data" / "w").read_text() == "w" * 9


def test_while_one_is_decrypted_nothing_is_forgotten_and_nobody_waits(
    keyring: Keyring, stored: DeploymentSpec, tmp_path: Path
) -> None:
    found = OpenedCopies(tmp_path, tmp_path / "opened", keyring)
    other = tmp_path / "opened" / "dep_0" / "1"
    other.mkdir(parents=True)
    (tmp_path / "opened").chmod(0o700)
    os.utime(other, (1, 1))

    def meanwhile(_: str) -> None:
        found.forget(())
        assert other.is_dir()

    found.open(stored, meanwhile)
    found.forget(())
    assert not other.exists()


def test_the_customers_file_is_read_as_it_is(tmp_path: Path) -> None:
    """It may be mounted for a group, and read-only: its mode is its owner's matter."""
    file = Path(key_file(tmp_path, new_customer_key()[0]))
    file.chmod(0o440)
    opened(tmp_path, str(file))
    assert file.stat().st_mode & 0o777 == 0o440


def test_no_room_and_no_folder_are_told(
    keyring: Keyring, stored: DeploymentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = OpenedCopies(tmp_path, tmp_path / "opened", keyring)
    found.check()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(Unavailable, match="FAREBOX_OPENED_DIR") as refusal:
        found.open(stored, silent)
    assert refusal.value.code == "no_room"
    (tmp_path / "opened").chmod(0o755)
    with pytest.raises(OpenedDirUnusable, match="chmod 700"):
        found.check()
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OpenedDirUnusable, match=str(wrong)):
            OpenedCopies(tmp_path, wrong, keyring).check()


def test_the_keyring_is_json_that_tells_no_secret(keyring: Keyring, tmp_path: Path) -> None:
    document = json.loads((tmp_path / "keyring.json").read_text())
    assert set(document) == {
        "version", "customer_key", "data_key", "made_ms", "rotated_ms", "sealed_all", "keys",
    }  # fmt: skip
    assert document["sealed_all"] is False
    keyring.note_all_sealed()
    assert json.loads((tmp_path / "keyring.json").read_text())["sealed_all"] is True
