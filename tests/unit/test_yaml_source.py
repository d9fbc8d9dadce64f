"""YAML read strictly: which plain scalars are numbers, and which numbers are refused."""

import pytest

from core.errors import Invalid
from wire.yaml_source import parse_yaml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("+7", 7),
        ("-12", -12),
        ("012", 12),  # YAML 1.2: no octal
        ("9" * 18, int("9" * 18)),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1_000", "1_000"),
        ("1.2.3", "1.2.3"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("'12'", "12"),
    ],
)
def test_a_plain_scalar_is_what_it_says(text: str, expected: object) -> None:
    found = parse_yaml(f"field: {text}").value["field"]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["9" * 19, "-" + "0" * 19, "1" * 40, "0" * 5000])
def test_a_number_of_too_many_digits_is_refused_by_its_field_and_line(text: str) -> None:
    with pytest.raises(Invalid, match="18 digits") as refused:
        parse_yaml(f"ok: 1\nfield: {text}")
    assert refused.value.param == "field"
    assert refused.value.extra == {"line": 2}
