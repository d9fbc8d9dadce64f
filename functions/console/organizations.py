"""Organizations and their projects."""

from typing import Annotated

from fastapi import Query, status
from pydantic import BaseModel, Field

from access import store
from access.model import Organization, Project
from core.clock import iso
from functions.console.dependencies import Deps
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, Text, page

router = console_router("organizations and projects")


class NewOrganization(Input):
    """An organization to create."""

    name: Text = Field(examples=["acme"], description="1 to 64 printable characters, unique.")


class OrganizationOut(BaseModel):
    """Who is billed."""

    id: str = Field(examples=["org_01kafn3m8hzq4v6p9x2c7d5b1w"])
    name: str = Field(examples=["acme"])
    created_at: str = Field(examples=["2026-11-23T12:00:00.000Z"])


class NewProject(Input):
    """A project to create."""

    name: Text = Field(
        examples=["website"], description="1 to 64 printable characters, unique in its organization."
    )
    organization: Text = Field(examples=["acme"], description="The organization's id or name.")


class ProjectOut(BaseModel):
    """What an organization divides its keys and endpoints into."""

    id: str = Field(examples=["proj_01kafn3m8hzq4v6p9x2c7d5b1w"])
    name: str = Field(examples=["website"])
    organization_id: str
    organization: str = Field(examples=["acme"])
    created_at: str


@router.post("/organizations", status_code=status.HTTP_201_CREATED, summary="Create an organization")
def create_organization(body: NewOrganization, deps: Deps) -> OrganizationOut:
    """409 when the name is taken."""
    with deps.db.begin() as connection:
        return _organization(store.create_organization(connection, body.name, deps.clock.now_ms()))


@router.get("/organizations", summary="List organizations")
def list_organizations(deps: Deps, limit: Limit = 50, after: After = "") -> Page[OrganizationOut]:
    """In order of creation."""
    with deps.db.read() as connection:
        found = store.list_organizations(connection, limit=limit + 1, after=after)
    return page(found, limit, _organization, lambda entry: entry.id)


@router.post("/projects", status_code=status.HTTP_201_CREATED, summary="Create a project")
def create_project(body: NewProject, deps: Deps) -> ProjectOut:
    """409 when the organization has one of that name, 404 when there is no such organization."""
    with deps.db.begin() as connection:
        organization = store.find_organization(connection, body.organization)
        return _project(store.create_project(connection, organization, body.name, deps.clock.now_ms()))


@router.get("/projects", summary="List projects")
def list_projects(
    deps: Deps,
    organization: Annotated[str | None, Query(max_length=200, description="Its id or name.")] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[ProjectOut]:
    """In order of creation, one organization's or all."""
    with deps.db.read() as connection:
        org_id = None if organization is None else store.find_organization(connection, organization).id
        found = store.list_projects(connection, org_id=org_id, limit=limit + 1, after=after)
    return page(found, limit, _project, lambda entry: entry.id)


def _organization(organization: Organization) -> OrganizationOut:
    return OrganizationOut(
        id=organization.id, name=organization.name, created_at=iso(organization.created_ms)
    )


def _project(project: Project) -> ProjectOut:
    return ProjectOut(
        id=project.id,
        name=project.name,
        organization_id=project.org_id,
        organization=project.org_name,
        created_at=iso(project.created_ms),
    )
