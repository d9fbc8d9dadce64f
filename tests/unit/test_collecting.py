"""What a deployment's `data_collector` may say."""

from typing import Any

import pytest

from core.errors import Invalid
from serving.online.collecting import Collecting, collecting, script_collections

ON = {"collections": {"request": {"enabled": True}, "response": {"enabled": "True"}}}


def test_nothing_is_collected_unless_it_is_asked_for() -> None:
    assert collecting(None) == (None, [])
    assert collecting({}) == (None, [])
    assert collecting({"collections": {"request": {"enabled": False}, "response": {}}}) == (None, [])


def test_defaults_are_azures() -> None:
    assert collecting(ON) == (Collecting(True, True, 1.0, "hour"), [])
    given = {
        "sampling_rate": 0.1,
        "rolling_rate": "Day",
        "collections": {"request": {"enabled": True, "data": {}}},
    }
    assert collecting(given)[0] == Collecting(True, False, 0.1, "day")


def test_what_has_no_effect_is_said() -> None:
    given = {
        "collections": {"model_inputs": {"enabled": True}},
        "request_logging": {"capture_headers": ["x"]},
    }
    found, notes = collecting(given)
    assert found is None
    assert script_collections(given) == {
        "collections": ["model_inputs"],
        "rolling": "hour",
        "sampling_rate": 1.0,
    }
    assert script_collections(ON) == {} == script_collections(None)
    assert script_collections({"collections": 1}) == {}
    assert [note.partition(":")[0] for note in notes] == [
        "data_collector.request_logging",
    ]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"sampling_rate": 1.5}, "sampling_rate"),
        ({"sampling_rate": True}, "sampling_rate"),
        ({"sampling_rate": "half"}, "sampling_rate"),
        ({"rolling_rate": "weekly"}, "rolling_rate"),
        ({"collection": {}}, "collection"),
        ({"collections": []}, "collections"),
        ({"collections": {f"c{at}": {} for at in range(8)}}, "collections"),
        ({"collections": {"request": True}}, "collections.request"),
        ({"collections": {"../x": {"enabled": True}}}, "collections.../x"),
        ({"collections": {"request": {"enabled": "maybe"}}}, "collections.request.enabled"),
        ({"collections": {"request": {"enable": True}}}, "collections.request.enable"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as refused:
        collecting(ON | change)
    assert refused.value.param == f"data_collector.{param}"
