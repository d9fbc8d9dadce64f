"""Fills a home's database with many keys and endpoints, in bulk: through the API it would take an hour.

The rows are those that the platform's own stores write; the home's platform must not be running.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from access.admission.model import BudgetScope, BudgetWindow, Limits, ScopeKind
from access.admission.store import StoredLimits, create_budget, put_limits
from access.keys import hash_key
from access.store import create_project, find_organization
from access.tables import api_keys, budgets, limits
from core.database import open_database
from core.ids import new_id
from core.money import parse_usd
from core.settings import load_settings
from serving.endpoints import create_serverless
from serving.tables import endpoints

PROJECTS = 100
AMPLE = Limits(
    requests_per_minute=10**10, requests_per_day=10**11, tokens_per_minute=10**11, parallel_requests=10**5
)
AMPLE_USD = "1000000.00"
_BATCH = 5000


@dataclass(frozen=True, slots=True)
class Population:
    """Key n is of project n modulo `PROJECTS` and calls endpoint n modulo `endpoints`, which that project has."""

    keys: int
    endpoints: int
    key_pattern: str = "sk-bench-%06d"
    endpoint_pattern: str = "bench-%05d"

    def __post_init__(self) -> None:
        assert self.endpoints % PROJECTS == 0 and self.keys % self.endpoints == 0, (
            "every project gets the same"
        )


def populate(home: Path, organization: str, wanted: Population) -> None:
    """Make the projects, endpoints and keys, with limits and budgets; the model is `bench/bench-plain`."""
    db = open_database(load_settings({}, home=home).sql_url)
    now_ms = time.time_ns() // 1_000_000
    try:
        with db.begin() as connection:
            owner = find_organization(connection, organization)
            projects = [create_project(connection, owner, f"p{n:03d}", now_ms).id for n in range(PROJECTS)]
            made = _add_endpoints(connection, wanted, owner.id, projects, now_ms)
            keys = _add_keys(connection, wanted, owner.id, projects, now_ms)
            _limit(connection, "project", projects, owner.id, now_ms)
            _limit(connection, "key", keys, owner.id, now_ms)
            _limit(connection, "endpoint", made, owner.id, now_ms)
            _budget(connection, "project", "total", projects, owner.id, now_ms)
            _budget(connection, "key", "day", keys, owner.id, now_ms)
    finally:
        db.close()


def _limit(connection: Connection, scope: ScopeKind, ids: list[str], org_id: str, now_ms: int) -> None:
    put_limits(connection, StoredLimits(scope, ids[0], org_id, AMPLE, False, now_ms))
    row = dict(connection.execute(select(limits).where(limits.c.scope_id == ids[0])).one()._mapping)
    _insert(connection, limits, [row | {"scope_id": scope_id} for scope_id in ids[1:]])


def _budget(
    connection: Connection, scope: BudgetScope, window: BudgetWindow, ids: list[str], org_id: str, now_ms: int
) -> None:
    first = create_budget(
        connection,
        scope=scope,
        scope_id=ids[0],
        org_id=org_id,
        amount_pico=parse_usd(AMPLE_USD, decimals=12),
        window=window,
        hard=True,
        spent_pico=0,
        now_ms=now_ms,
    )
    found = connection.execute(select(budgets).where(budgets.c.id == first.budget.id)).one()
    row = dict(found._mapping)
    others = [row | {"id": new_id("budget", now_ms), "scope_id": scope_id} for scope_id in ids[1:]]
    _insert(connection, budgets, others)


def _add_endpoints(
    connection: Connection, wanted: Population, org_id: str, projects: list[str], now_ms: int
) -> list[str]:
    model_id = "bench/bench-plain"
    # The first one is made as the platform makes them; the others are that row under other names.
    first = create_serverless(
        connection,
        name=wanted.endpoint_pattern % 0,
        model_id=model_id,
        org_id=org_id,
        project_id=projects[0],
        now_ms=now_ms,
    )
    row = dict(connection.execute(select(endpoints).where(endpoints.c.id == first.id)).one()._mapping)
    rows = []
    for number in range(1, wanted.endpoints):
        name = wanted.endpoint_pattern % number
        other = {"id": new_id("ep", now_ms), "name": name, "name_key": name.lower()}
        rows.append(row | other | {"project_id": projects[number % PROJECTS]})
    _insert(connection, endpoints, rows)
    return [first.id, *(row["id"] for row in rows)]


def _add_keys(
    connection: Connection, wanted: Population, org_id: str, projects: list[str], now_ms: int
) -> list[str]:
    rows: list[dict[str, Any]] = []
    for number in range(wanted.keys):
        text = wanted.key_pattern % number
        rows.append(
            {
                "id": new_id("key", now_ms),
                "kind": "project",
                "key_hash": hash_key(text),
                "hint": text,
                "name": text,
                "org_id": org_id,
                "project_id": projects[number % PROJECTS],
                "endpoint_id": "",
                "slot": "",
                "sealed": "",
                "created_ms": now_ms,
                "expires_ms": 0,
                "revoked_ms": 0,
            }
        )
    _insert(connection, api_keys, rows)
    return [str(row["id"]) for row in rows]


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    # Nobody runs who could have cached anything, so no change is recorded.
    for start in range(0, len(rows), _BATCH):
        connection.execute(insert(table), rows[start : start + _BATCH])
