"""Who is next when a place is free: fair by tokens between organizations, then between the projects of one. Pure.

Start-time fair queueing at both levels. Each tenant has a virtual time at which its next call begins: what it was
given so far, in tokens, counted since it last had nothing to ask for. The tenant with the earliest is next, so tenants
who wait side by side get the same number of tokens, in few large calls or in many small ones.
"""

from typing import Final, Generic, TypeVar

from core.errors import FareboxError, RateLimited, Unavailable

# Tenants without waiting calls whose virtual time is kept; then the earliest are forgotten.
_REMEMBERED: Final = 1024

_V = TypeVar("_V")
_T = TypeVar("_T", bound="Ticket")


class Ticket:
    """A call that waits. `tokens`: what it can come to at most, at least 1."""

    __slots__ = ("org_id", "project_id", "since_ms", "tokens")

    def __init__(self, org_id: str, project_id: str, tokens: int, since_ms: int = 0) -> None:
        self.org_id, self.project_id = org_id, project_id
        self.tokens, self.since_ms = tokens, since_ms


class _Tenant(Generic[_V]):
    """`next_start`: the virtual time at which its next call begins."""

    __slots__ = ("inside", "next_start", "waiting")

    def __init__(self, inside: _V) -> None:
        self.inside = inside
        self.next_start = 0
        self.waiting = 0  # calls


class _Level(Generic[_V]):
    """Tenants side by side and the virtual time they share."""

    __slots__ = ("_now", "_tenants", "_waiting")

    def __init__(self) -> None:
        self._now = 0
        self._tenants: dict[str, _Tenant[_V]] = {}
        self._waiting: dict[str, _Tenant[_V]] = {}  # those of them with waiting calls

    def find(self, name: str) -> _Tenant[_V] | None:
        return self._tenants.get(name)

    def add(self, name: str, inside: _V) -> _Tenant[_V]:
        if len(self._tenants) - len(self._waiting) >= _REMEMBERED:
            self._forget()
        tenant = self._tenants[name] = _Tenant(inside)
        return tenant

    def enter(self, name: str, tenant: _Tenant[_V]) -> None:
        """One more call of the tenant waits."""
        if not tenant.waiting:
            # Time without calls gives no claim to more later.
            tenant.next_start = max(tenant.next_start, self._now)
            self._waiting[name] = tenant
        tenant.waiting += 1

    def leave(self, name: str, tenant: _Tenant[_V]) -> None:
        """One less does."""
        tenant.waiting -= 1
        if not tenant.waiting:
            del self._waiting[name]

    def next(self) -> tuple[str, _Tenant[_V]]:
        """Whose turn it is; of equals, who came first."""
        return min(self._waiting.items(), key=lambda item: item[1].next_start)

    def serve(self, tenant: _Tenant[_V], tokens: int) -> None:
        self._now = tenant.next_start
        tenant.next_start += tokens

    def _forget(self) -> None:
        idle = [name for name, tenant in self._tenants.items() if not tenant.waiting]
        idle.sort(key=lambda name: self._tenants[name].next_start)
        for name in idle[: len(idle) // 2]:
            del self._tenants[name]


class _Calls(Generic[_T]):
    """Of one project, oldest first; a dict, so that who hangs up leaves at once."""

    __slots__ = ("tickets",)

    def __init__(self) -> None:
        self.tickets: dict[_T, None] = {}


class FairQueue(Generic[_T]):
    """The calls that wait for one deployment; bounded in all, and for one organization."""

    def __init__(self, at_most: int, at_most_per_org: int) -> None:
        self._at_most = at_most
        self._at_most_per_org = at_most_per_org
        self._clear()

    def _clear(self) -> None:
        self._orgs: _Level[_Level[_Calls[_T]]] = _Level()
        self._all: dict[_T, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    def oldest(self) -> _T | None:
        """Who waits longest."""
        return next(iter(self._all), None)

    def full_for(self, org_id: str) -> FareboxError | None:
        """Why one more call of the organization has no room, without a time to come again; None: it has."""
        if len(self._all) >= self._at_most:
            return Unavailable(
                f"{len(self._all)} calls already wait for this model; try again in a moment.",
                code="queue_full",
            )
        org = self._orgs.find(org_id)
        if org is not None and org.waiting >= self._at_most_per_org:
            return RateLimited(
                f"{org.waiting} calls of your organization already wait for this model; try again in a moment.",
                code="queue_full",
            )
        return None

    def push(self, ticket: _T) -> None:
        """At the end of its project's calls; `full_for` was asked."""
        org = self._orgs.find(ticket.org_id) or self._orgs.add(ticket.org_id, _Level())
        projects = org.inside
        project = projects.find(ticket.project_id) or projects.add(ticket.project_id, _Calls())
        self._orgs.enter(ticket.org_id, org)
        projects.enter(ticket.project_id, project)
        project.inside.tickets[ticket] = None
        self._all[ticket] = None

    def pop(self) -> _T:
        """The next call; there must be one."""
        org_id, org = self._orgs.next()
        _, project = org.inside.next()
        ticket = next(iter(project.inside.tickets))
        self._orgs.serve(org, ticket.tokens)
        org.inside.serve(project, ticket.tokens)
        assert ticket.org_id == org_id, "it waits where it was put"
        self.remove(ticket)
        return ticket

    def remove(self, ticket: _T) -> None:
        """It waits no longer; harmless when it did not."""
        if ticket not in self._all:
            return
        del self._all[ticket]
        if not self._all:
            self._clear()  # nobody is owed anything by those who come later
            return
        org = self._orgs.find(ticket.org_id)
        assert org is not None, "a tenant with calls is not forgotten"
        project = org.inside.find(ticket.project_id)
        assert project is not None, "a tenant with calls is not forgotten"
        del project.inside.tickets[ticket]
        org.inside.leave(ticket.project_id, project)
        self._orgs.leave(ticket.org_id, org)
