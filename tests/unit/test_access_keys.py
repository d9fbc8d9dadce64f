"""Keys, names and secret files."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.files import SecretFileError, read_secret_file, write_secret_file
from access.keys import hash_key, looks_like_key, make_key
from access.model import valid_name
from access.sealer import SealBrokenError, Sealer, ensure_secret
from core.errors import FareboxError, Invalid


@pytest.mark.parametrize(
    ("kind", "prefix"), [("admin", "fbx_admin_"), ("project", "fbx_sk_"), ("endpoint", "fbx_ep_")]
)
def test_keys_are_long_random_and_named_by_kind(kind, prefix) -> None:
    keys = [make_key(kind) for _ in range(200)]
    assert len({key.text for key in keys}) == 200
    for key in keys:
        assert key.text.startswith(prefix)
        assert len(key.text) - len(prefix) == 44  # 264 bits in base 64
        assert looks_like_key(key.text)
        assert key.hint == f"{prefix}…{key.text[-4:]}"
        assert key.key_hash == hash_key(key.text)
        assert key.text not in repr(key)


@pytest.mark.parametrize(
    "text", ["", "sk-1", "fbx_sk_", "fbx_sk_" + "a" * 43, "fbx_xx_" + "a" * 44, "fbx_sk_" + "ä" * 44]
)
def test_what_is_not_a_key(text) -> None:
    assert not looks_like_key(text)


@given(st.text())
def test_any_presented_text_can_be_hashed(text: str) -> None:
    try:
        assert len(hash_key(text)) == 64
    except UnicodeEncodeError:  # lone surrogates never come out of a header
        assert any(0xD800 <= ord(c) <= 0xDFFF for c in text)


@pytest.mark.parametrize("name", ["a", " padded ", "x" * 64, "Ärzte & Söhne", "日本", "default", "team-1"])
def test_names_that_are_allowed(name) -> None:
    assert valid_name(name) == name.strip()


@pytest.mark.parametrize(
    "name",
    ["", "  ", "x" * 65, "a/b", "a\nb", "a\x00", "a\u2028b", "\ud800", "org_00000000050xdq165ak2pqmxyc"],
)
def test_names_that_are_refused(name) -> None:
    with pytest.raises(Invalid) as caught:
        valid_name(name)
    assert caught.value.param == "name"


def test_a_sealed_text_opens_only_with_its_secret_and_context() -> None:
    sealer = Sealer(b"s" * 32)
    sealed = sealer.seal("fbx_ep_x", "key_1")
    assert "fbx_ep" not in sealed
    assert sealer.seal("fbx_ep_x", "key_1") != sealed  # another nonce
    assert sealer.open(sealed, "key_1") == "fbx_ep_x"
    for broken in (
        lambda: sealer.open(sealed, "key_2"),
        lambda: Sealer(b"t" * 32).open(sealed, "key_1"),
        lambda: sealer.open(sealed[:-4] + "AAAA", "key_1"),
        lambda: sealer.open("v1.", "key_1"),
        lambda: sealer.open("", "key_1"),
        lambda: sealer.open("v1.\u00e9", "key_1"),
    ):
        with pytest.raises(SealBrokenError, match=r"secret\.key"):
            broken()
    assert "s" * 32 not in repr(sealer)


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    first = ensure_secret(path)
    assert len(first) == 32
    assert ensure_secret(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == first.hex() + "\n"
    path.write_text("zz\n")
    with pytest.raises(FareboxError, match="damaged"):
        ensure_secret(path)


def test_a_secret_file_open_to_others_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("value\n")
    path.chmod(0o644)
    assert read_secret_file(path, "test") == "value"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_secret_file_that_cannot_be_used_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(SecretFileError, match="cannot read the test file"):
        read_secret_file(tmp_path / "directory", "test")
    with pytest.raises(SecretFileError, match="choose another --home"):
        write_secret_file(tmp_path / "missing" / "x", "v", "test")


def test_a_left_over_of_a_crash_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".x.new").write_text("half")
    write_secret_file(tmp_path / "x", "whole", "test")
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "whole\n"
