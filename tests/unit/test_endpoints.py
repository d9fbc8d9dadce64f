"""Rules that an endpoint's name and tags must follow, and one line of reason from a server's log."""

import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from serving.endpoints import check_name, check_tags
from serving.replica_logs import ReplicaLog, distill


@pytest.mark.parametrize("name", ["abc", "my-chat", "A1b", "a-1-b", "x" * 32, "Chat2-v3"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ab", "has 2 characters"),
        ("x" * 33, "has 33 characters"),
        ("x" * 5000, "has 5000 characters"),
        ("", "has 0 characters"),
        ("1abc", "does not start with a letter"),
        ("-abc", "does not start with a letter"),
        ("a_bc", "has the character '_'"),
        ("a b c", "has the character ' '"),
        ("chät", "has the character 'ä'"),
        ("abc\n", "has the character '\\n'"),
        ("a--b", "two dashes in a row"),
        ("abc-", "ends with a dash"),
        (7, "expected a text, got int"),
        (None, "expected a text"),
    ],
)
def test_bad_names_say_which_rule_they_break(name: object, says: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_name(name)
    assert refused.value.param == "name"
    assert says in refused.value.message
    assert "3 to 32 characters" in refused.value.message
    assert len(refused.value.message) < 300


@given(st.text(max_size=40))
def test_any_text_is_accepted_or_refused_cleanly(name: str) -> None:
    try:
        check_name(name)
    except Invalid:
        return
    assert name.isascii()
    assert 3 <= len(name) <= 32
    assert all(part.isalnum() for part in name.split("-"))


def test_tags() -> None:
    assert check_tags(None) == {}
    assert check_tags({"team": "search"}) == {"team": "search"}
    for tags, param in (
        (["a"], "tags"),
        ({f"t{n}": "" for n in range(51)}, "tags"),
        ({"": "x"}, "tags"),
        ({"team": 3}, "tags.team"),
        ({"team": "x" * 257}, "tags.team"),
    ):
        with pytest.raises(Invalid) as refused:
            check_tags(tags)
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("log", "status", "reason"),
    [
        ("", 0, "the server ended with status 0"),
        ("loading\nlast words", 1, "the server ended with status 1: last words"),
        (
            "(EngineCore pid=9) ERROR 11-23 12:00:00 [core.py:708] ValueError: max seq len is too large\n"
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
            1,
            "the server ended with status 1: ValueError: max seq len is too large",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            1,
            "the server ended with status 1: the GPU's memory is too small for it: "
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        ),
        (
            "\x1b[31mOSError: [Errno 28] No space left on device\x1b[0m",
            1,
            "the server ended with status 1: the disk is full: OSError: [Errno 28] No space left on device",
        ),
        (
            "INFO: serving",
            -signal.SIGKILL,
            "the server was killed (SIGKILL), perhaps by the system for want of memory",
        ),
        ("INFO: serving", -signal.SIGSEGV, "the server was ended by SIGSEGV"),
        ("x", None, "the server ended: x"),
    ],
)
def test_reasons(log: str, status: int | None, reason: str) -> None:
    assert distill(log.splitlines(), status) == reason


def test_reasons_are_short() -> None:
    assert len(distill(["ValueError: " + "x" * 10_000], 1)) == 400


def test_tail_joins_the_older_part(tmp_path: Path) -> None:
    log = ReplicaLog(tmp_path, "rep_1")
    assert log.tail(5) == []
    log.path.write_bytes(b"".join(b"line %d\n" % n for n in range(1000)))
    log.rotate(4_000)
    assert log.path.stat().st_size == 0
    assert log.older.stat().st_size == 2_000
    with log.path.open("a") as file:
        file.write("new 1\nnew 2 \xff\n")
    assert log.tail(3) == ["line 999", "new 1", "new 2 \xff"]
    assert log.tail(0) == []
    log.remove()
    assert list(tmp_path.iterdir()) == []
