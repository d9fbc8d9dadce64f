"""SQL of organizations, projects and keys. Every function works in the caller's transaction."""

from typing import Any

from sqlalchemy import Connection, Row, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from access.keys import NewKey, make_key
from access.model import ApiKey, KeySlot, KeyStatus, Organization, Project, valid_name
from access.principal import Principal
from access.sealer import Sealer
from access.tables import api_keys, organizations, projects
from core.changes import record_change
from core.errors import Conflict, Invalid, NotFound, RateLimited
from core.ids import new_id

SLOTS: tuple[KeySlot, KeySlot] = ("primary", "secondary")
TOKEN_SLOT = "token"  # of an endpoint's short-lived keys
MAX_TOKENS = 1000  # in force at once, of one endpoint

_KEY_COLUMNS = [c for c in api_keys.c if c.name not in ("key_hash", "sealed")]
_PROJECT_COLUMNS = [
    projects.c.id,
    projects.c.name,
    projects.c.org_id,
    organizations.c.name.label("org_name"),
    projects.c.created_ms,
]


# --- organizations --------------------------------------------------------------------------------


def create_organization(connection: Connection, name: str, now_ms: int) -> Organization:
    """A new organization; Conflict when the name is taken."""
    organization = Organization(new_id("org", now_ms), valid_name(name), now_ms)
    row = {"id": organization.id, "name": organization.name, "created_ms": now_ms}
    _insert_unique(
        connection, organizations, row, f"an organization named {organization.name!r} exists already"
    )
    record_change(connection, "organization", organization.id, now_ms)
    return organization


def list_organizations(connection: Connection, *, limit: int = 50, after: str = "") -> list[Organization]:
    """Organizations in order of creation, those with an id greater than `after`."""
    rows = connection.execute(
        select(organizations).where(organizations.c.id > after).order_by(organizations.c.id).limit(limit)
    )
    return [Organization(*row) for row in rows]


def get_organization_name(connection: Connection, org_id: str) -> str:
    """Its name, or the id when there is none by that id."""
    name = connection.execute(select(organizations.c.name).where(organizations.c.id == org_id)).scalar()
    return name or org_id


def find_organization(connection: Connection, name: str, param: str = "organization") -> Organization:
    """The organization with that id or name; NotFound names `param`."""
    row = connection.execute(
        select(organizations).where(or_(organizations.c.id == name, organizations.c.name == name.strip()))
    ).first()
    if row is None:
        raise NotFound(f"{param}: there is no organization {name!r}", param=param)
    return Organization(*row)


# --- projects -------------------------------------------------------------------------------------


def create_project(connection: Connection, organization: Organization, name: str, now_ms: int) -> Project:
    """A new project; Conflict when the organization has one of that name."""
    project = Project(new_id("proj", now_ms), valid_name(name), organization.id, organization.name, now_ms)
    row = {"id": project.id, "org_id": organization.id, "name": project.name, "created_ms": now_ms}
    taken = f"organization {organization.name!r} has a project named {project.name!r} already"
    _insert_unique(connection, projects, row, taken)
    record_change(connection, "project", project.id, now_ms)
    return project


def list_projects(
    connection: Connection, *, org_id: str | None = None, limit: int = 50, after: str = ""
) -> list[Project]:
    """Projects in order of creation: one organization's, or every organization's (for the operator)."""
    query = _projects().where(projects.c.id > after).order_by(projects.c.id).limit(limit)
    if org_id is not None:
        query = query.where(projects.c.org_id == org_id)
    return [Project(*row) for row in connection.execute(query)]


def get_project(connection: Connection, project_id: str) -> Project | None:
    """The project with that id."""
    row = connection.execute(_projects().where(projects.c.id == project_id)).first()
    return None if row is None else Project(*row)


def find_project(connection: Connection, name: str, param: str = "project") -> Project:
    """The project with that id, name, or `organization/name`; a name in several organizations is Invalid."""
    org_name, slash, project_name = name.partition("/")
    query = _projects()
    if slash:
        query = query.where(
            projects.c.name == project_name.strip(),
            or_(organizations.c.name == org_name.strip(), organizations.c.id == org_name),
        )
    else:
        query = query.where(or_(projects.c.id == name, projects.c.name == name.strip()))
    rows = connection.execute(query.order_by(projects.c.id).limit(20)).all()
    if not rows:
        raise NotFound(f"{param}: there is no project {name!r}", param=param)
    if len(rows) > 1:
        names = ", ".join(sorted(f"{row.org_name}/{row.name}" for row in rows))
        raise Invalid(f"{param}: {name!r} is the name of several projects; say which: {names}", param=param)
    return Project(*rows[0])


def sole_project(connection: Connection, now_ms: int) -> Project:
    """The project meant when none is named: the only one, or `default/default`, made when there is none."""
    rows = connection.execute(_projects().order_by(projects.c.id).limit(20)).all()
    if len(rows) == 1:
        return Project(*rows[0])
    if rows:
        names = ", ".join(sorted(f"{row.org_name}/{row.name}" for row in rows))
        raise Invalid(f"project: there are several projects; name one of {names}", param="project")
    found = connection.execute(select(organizations).where(organizations.c.name == "default")).first()
    organization = Organization(*found) if found else create_organization(connection, "default", now_ms)
    return create_project(connection, organization, "default", now_ms)


# --- keys -----------------------------------------------------------------------------------------


def create_key(
    connection: Connection, project: Project, name: str, now_ms: int, *, expires_ms: int = 0
) -> tuple[ApiKey, str]:
    """A new key of a project, and its text: the only time that it is known."""
    if expires_ms and expires_ms <= now_ms:
        raise Invalid("expires_at: expected a time in the future", param="expires_at")
    new = make_key("project")
    key = ApiKey(
        id=new_id("key", now_ms),
        kind="project",
        name=valid_name(name),
        hint=new.hint,
        org_id=project.org_id,
        project_id=project.id,
        endpoint_id="",
        slot="",
        created_ms=now_ms,
        expires_ms=expires_ms,
        revoked_ms=0,
    )
    _insert_key(connection, key, new)
    return key, new.text


def get_key(connection: Connection, key_id: str) -> ApiKey | None:
    """What is known of the key with that id."""
    row = connection.execute(select(*_KEY_COLUMNS).where(api_keys.c.id == key_id)).first()
    return None if row is None else _api_key(row)


def list_keys(
    connection: Connection, *, project_id: str | None = None, limit: int = 50, after: str = ""
) -> list[ApiKey]:
    """Project and admin keys in order of creation, also expired and revoked ones; or those of one project."""
    query = select(*_KEY_COLUMNS).where(api_keys.c.kind != "endpoint", api_keys.c.id > after)
    if project_id is not None:
        query = query.where(api_keys.c.project_id == project_id)
    return [_api_key(row) for row in connection.execute(query.order_by(api_keys.c.id).limit(limit))]


def revoke_key(connection: Connection, key_id: str, now_ms: int) -> ApiKey:
    """Close a project or admin key for good; a second time changes nothing. Endpoint keys are regenerated."""
    key = get_key(connection, key_id)
    if key is None or key.kind == "endpoint":
        raise NotFound(f"there is no API key {key_id!r}", param="id")
    if not key.revoked_ms:
        _revoke(connection, api_keys.c.id == key_id, now_ms)
    revoked = get_key(connection, key_id)
    assert revoked is not None, "keys are never deleted"
    return revoked


def principal_by_hash(connection: Connection, key_hash: str, now_ms: int) -> Principal | None:
    """Who holds the key with that hash; None when it is unknown, expired or revoked."""
    key = _by_hash(connection, key_hash)
    if key is None or key.status(now_ms) != "ok":
        return None
    return Principal(key.kind, key.id, key.org_id, key.project_id, key.endpoint_id, key.expires_ms)


def key_status(connection: Connection, key_hash: str, now_ms: int) -> KeyStatus:
    """Why `principal_by_hash` says no, for the message to the caller."""
    key = _by_hash(connection, key_hash)
    return "unknown" if key is None else key.status(now_ms)


# --- admin keys -----------------------------------------------------------------------------------


def create_admin_key(
    connection: Connection, name: str, now_ms: int, *, expires_ms: int = 0
) -> tuple[ApiKey, str]:
    """A further admin key, for another person, and its text: the only time that it is known."""
    new = make_key("admin")
    return add_admin_key(connection, new, now_ms, name=valid_name(name), expires_ms=expires_ms), new.text


def add_admin_key(
    connection: Connection, new: NewKey, now_ms: int, *, name: str = "admin", expires_ms: int = 0
) -> ApiKey:
    """Store the hash of an admin key."""
    key = ApiKey(new_id("key", now_ms), "admin", name, new.hint, "", "", "", "", now_ms, expires_ms, 0)
    _insert_key(connection, key, new)
    return key


def has_admin_key(connection: Connection) -> bool:
    """True when an admin key was ever stored."""
    return (
        connection.execute(select(api_keys.c.id).where(api_keys.c.kind == "admin").limit(1)).first()
        is not None
    )


def revoke_admin_keys(connection: Connection, now_ms: int) -> None:
    """Close every admin key."""
    _revoke(connection, api_keys.c.kind == "admin", now_ms)


# --- endpoint keys --------------------------------------------------------------------------------


def issue_endpoint_keys(
    connection: Connection, endpoint_id: str, org_id: str, project_id: str, now_ms: int, sealer: Sealer
) -> dict[str, str]:
    """Make both keys of a new endpoint; returns them as `endpoint_keys` does."""
    return {
        f"{slot}Key": _issue_endpoint_key(connection, endpoint_id, org_id, project_id, slot, now_ms, sealer)
        for slot in SLOTS
    }


def endpoint_keys(connection: Connection, endpoint_id: str, sealer: Sealer) -> dict[str, str]:
    """The endpoint's two keys, `primaryKey` and `secondaryKey`; NotFound when it has none (it is deleted)."""
    rows = connection.execute(
        select(api_keys.c.id, api_keys.c.slot, api_keys.c.sealed).where(_living(endpoint_id))
    ).all()
    if not rows:
        raise NotFound(f"endpoint {endpoint_id} has no keys")
    found = {row.slot: sealer.open(row.sealed, row.id) for row in rows}
    return {f"{slot}Key": found[slot] for slot in SLOTS if slot in found}


def regenerate_endpoint_key(
    connection: Connection, endpoint_id: str, slot: KeySlot, now_ms: int, sealer: Sealer
) -> dict[str, str]:
    """Revoke the key in `slot` at once and make another; the other slot goes on working."""
    row = connection.execute(
        select(api_keys.c.org_id, api_keys.c.project_id).where(_living(endpoint_id)).limit(1)
    ).first()
    if row is None:
        raise NotFound(f"endpoint {endpoint_id} has no keys")
    _revoke(connection, and_(api_keys.c.endpoint_id == endpoint_id, api_keys.c.slot == slot), now_ms)
    _issue_endpoint_key(connection, endpoint_id, row.org_id, row.project_id, slot, now_ms, sealer)
    return endpoint_keys(connection, endpoint_id, sealer)


def issue_endpoint_token(
    connection: Connection, endpoint_id: str, org_id: str, project_id: str, now_ms: int, life_ms: int
) -> str:
    """A key of the endpoint that is good for `life_ms` and shown this once; RateLimited when too many are in force.

    Tokens that expired count as revoked from then on, so that revoking an endpoint's keys stays a small deed.
    """
    mine = and_(api_keys.c.endpoint_id == endpoint_id, api_keys.c.slot == TOKEN_SLOT)
    over = and_(mine, api_keys.c.expires_ms <= now_ms, api_keys.c.revoked_ms == 0)
    connection.execute(update(api_keys).where(over).values(revoked_ms=api_keys.c.expires_ms))
    in_force = connection.execute(
        select(func.count()).select_from(api_keys).where(mine, api_keys.c.revoked_ms == 0)
    ).scalar_one()
    if in_force >= MAX_TOKENS:
        raise RateLimited(
            f"{in_force} tokens of this endpoint are in force; use one of them until it expires",
            retry_after_s=60,
        )
    new = make_key("endpoint")
    key = ApiKey(
        id=new_id("key", now_ms),
        kind="endpoint",
        name=TOKEN_SLOT,
        hint=new.hint,
        org_id=org_id,
        project_id=project_id,
        endpoint_id=endpoint_id,
        slot=TOKEN_SLOT,
        created_ms=now_ms,
        expires_ms=now_ms + life_ms,
        revoked_ms=0,
    )
    _insert_key(connection, key, new)
    return new.text


def revoke_endpoint_keys(connection: Connection, endpoint_id: str, now_ms: int) -> None:
    """Close both keys of an endpoint that is deleted, and its tokens."""
    _revoke(connection, api_keys.c.endpoint_id == endpoint_id, now_ms)


def _issue_endpoint_key(
    connection: Connection,
    endpoint_id: str,
    org_id: str,
    project_id: str,
    slot: KeySlot,
    now_ms: int,
    sealer: Sealer,
) -> str:
    new = make_key("endpoint")
    key_id = new_id("key", now_ms)
    key = ApiKey(key_id, "endpoint", slot, new.hint, org_id, project_id, endpoint_id, slot, now_ms, 0, 0)
    _insert_key(connection, key, new, sealer.seal(new.text, key_id))
    return new.text


def _living(endpoint_id: str) -> Any:
    return and_(api_keys.c.endpoint_id == endpoint_id, api_keys.c.revoked_ms == 0, api_keys.c.slot.in_(SLOTS))


# --- shared ---------------------------------------------------------------------------------------


def _projects() -> Any:
    return select(*_PROJECT_COLUMNS).join(organizations, organizations.c.id == projects.c.org_id)


def _by_hash(connection: Connection, key_hash: str) -> ApiKey | None:
    row = connection.execute(select(*_KEY_COLUMNS).where(api_keys.c.key_hash == key_hash)).first()
    return None if row is None else _api_key(row)


def _api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(**row._mapping)


def _insert_key(connection: Connection, key: ApiKey, new: NewKey, sealed: str = "") -> None:
    values = {column.name: getattr(key, column.name) for column in _KEY_COLUMNS}
    connection.execute(insert(api_keys).values(**values, key_hash=new.key_hash, sealed=sealed))
    # Readers cache unknown keys too, so a new key is a change like any other.
    record_change(connection, "key", key.id, key.created_ms)


def _revoke(connection: Connection, which: Any, now_ms: int) -> None:
    ids = connection.execute(select(api_keys.c.id).where(which, api_keys.c.revoked_ms == 0)).scalars().all()
    if ids:
        connection.execute(
            update(api_keys).where(api_keys.c.id.in_(ids)).values(revoked_ms=now_ms, sealed="")
        )
    for key_id in ids:
        record_change(connection, "key", key_id, now_ms)


def _insert_unique(connection: Connection, table: Any, row: dict[str, Any], message: str) -> None:
    try:
        with connection.begin_nested():
            connection.execute(insert(table).values(**row))
    except IntegrityError as error:
        raise Conflict(message, param="name") from error
