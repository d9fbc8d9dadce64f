"""Whose rows a request may read: an operator chooses, a key of a project sees its own."""

from dataclasses import dataclass

from sqlalchemy import Connection

from access import store
from access.model import Organization
from access.principal import Principal
from core.errors import Forbidden, Invalid


@dataclass(frozen=True, slots=True)
class Scope:
    """An organization, and one of its projects or all of them (None)."""

    organization: Organization
    project_id: str | None


def read_scope(
    connection: Connection, caller: Principal, organization: str | None, project: str | None = None
) -> Scope:
    """The scope asked for, as far as `caller` may have it; Invalid when it must be named."""
    if caller.kind != "admin":
        return _own_scope(connection, caller, organization, project)
    found = None if project is None else store.find_project(connection, project)
    if organization is not None:
        chosen = store.find_organization(connection, organization)
        if found is not None and found.org_id != chosen.id:
            raise Invalid(f"project: {project!r} is not a project of {chosen.name!r}", param="project")
    else:
        chosen = (
            _only_organization(connection)
            if found is None
            else store.find_organization(connection, found.org_id)
        )
    return Scope(chosen, None if found is None else found.id)


def _own_scope(
    connection: Connection, caller: Principal, organization: str | None, project: str | None
) -> Scope:
    own = store.get_project(connection, caller.project_id)
    assert own is not None, "projects are never deleted"
    if organization is not None and organization not in (own.org_id, own.org_name):
        raise Forbidden("organization: a project's key reads its own project only", param="organization")
    if project is not None and project not in (own.id, own.name, f"{own.org_name}/{own.name}"):
        raise Forbidden("project: a project's key reads its own project only", param="project")
    return Scope(store.find_organization(connection, own.org_id), own.id)


def _only_organization(connection: Connection) -> Organization:
    found = store.list_organizations(connection, limit=20)
    if len(found) == 1:
        return found[0]
    if not found:
        raise Invalid("organization: there is none yet; create one first", param="organization")
    names = ", ".join(sorted(each.name for each in found))
    raise Invalid(f"organization: there are several; name one of {names}", param="organization")
