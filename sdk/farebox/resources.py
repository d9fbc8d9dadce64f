"""The API's collections, one class each; `farebox.Client` holds one of every kind."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from farebox.resource import Resource, given, rows_of
from farebox.transport import path_of
from farebox.types import (
    Alarm,
    ApiKey,
    Budget,
    BudgetWindow,
    ContentSafety,
    CreatedApiKey,
    Deployment,
    EndpointKeys,
    KeyType,
    Limits,
    LimitScope,
    Model,
    Organization,
    Page,
    PriceVersion,
    Project,
    PutModel,
    Receipt,
    Reconciliation,
    ServerlessEndpoint,
    UsageReport,
)

_PriceVersions = list[PriceVersion]  # inside a class with a method named `list`, that name is the method


class Organizations(Resource):
    """Who is billed."""

    def create(self, name: str) -> Organization:
        return cast(Organization, self._transport.json("POST", "/api/organizations", json={"name": name}))

    def list(self) -> list[Organization]:
        return self._all("/api/organizations")


class Projects(Resource):
    """Projects of an organization; keys and endpoints belong to one."""

    def create(self, name: str, *, organization: str) -> Project:
        """`organization` is an id or a name."""
        body = {"name": name, "organization": organization}
        return cast(Project, self._transport.json("POST", "/api/projects", json=body))

    def list(self, *, organization: str | None = None) -> list[Project]:
        return self._all("/api/projects", organization=organization)


class Keys(Resource):
    """API keys of a project."""

    def create(
        self,
        *,
        project: str | None = None,
        name: str,
        expires_in_s: int | None = None,
        admin: bool = False,
    ) -> CreatedApiKey:
        """The answer's `key` is shown this once. `project` is an id, a name, or organization/name.

        `admin`: a key for another person who manages; it has no project.
        """
        body = given(project=project, name=name, expires_in_s=expires_in_s, admin=admin or None)
        return cast(CreatedApiKey, self._transport.json("POST", "/api/keys", json=body))

    def list(self, *, project: str | None = None) -> list[ApiKey]:
        return self._all("/api/keys", project=project)

    def revoke(self, key_id: str) -> ApiKey:
        """Calls with the key are refused from now on."""
        return cast(ApiKey, self._transport.json("DELETE", "/api/keys" + path_of(key_id)))


class Models(Resource):
    """The catalog."""

    def list(self, *, task: str | None = None) -> list[Model]:
        return self._all("/api/models", task=task)

    def get(self, model_id: str) -> Model:
        return cast(Model, self._transport.json("GET", "/api/models" + path_of(model_id)))

    def add(self, document: str | bytes, *, content_type: str = "application/yaml") -> PutModel:
        """Adds or changes the model of a YAML document, sent as it is so that the server can name lines."""
        content = document.encode() if isinstance(document, str) else document
        answer = self._transport.json("POST", "/api/models", content=content, content_type=content_type)
        return cast(PutModel, answer)

    def remove(self, model_id: str) -> Model:
        """Refused (409) while an endpoint uses the model."""
        return cast(Model, self._transport.json("DELETE", "/api/models" + path_of(model_id)))

    def prices(self, model_id: str) -> _PriceVersions:
        """Every price version, each immutable once begun."""
        return self._all("/api/model-prices" + path_of(model_id))


class ServerlessEndpoints(Resource):
    """Stable addresses of catalog models, billed by the token and the minute."""

    def create(
        self,
        name: str,
        *,
        model: str,
        project: str | None = None,
        tags: Mapping[str, str] | None = None,
        content_safety: ContentSafety | None = None,
    ) -> ServerlessEndpoint:
        """Without `project`: the only one there is. Without `content_safety`: enabled."""
        body = given(
            name=name,
            model=model,
            project=project,
            tags=dict(tags) if tags else None,
            content_safety=content_safety,
        )
        return cast(ServerlessEndpoint, self._transport.json("POST", "/api/serverless-endpoints", json=body))

    def update(
        self,
        name: str,
        *,
        tags: Mapping[str, str] | None = None,
        content_safety: ContentSafety | None = None,
    ) -> ServerlessEndpoint:
        """Change what is given; `tags` replace all there are."""
        body = given(tags=None if tags is None else dict(tags), content_safety=content_safety)
        return cast(ServerlessEndpoint, self._transport.json("PATCH", self._path(name), json=body))

    def list(self, *, project: str | None = None) -> list[ServerlessEndpoint]:
        return self._all("/api/serverless-endpoints", project=project)

    def get(self, name: str) -> ServerlessEndpoint:
        return cast(ServerlessEndpoint, self._transport.json("GET", self._path(name)))

    def delete(self, name: str) -> ServerlessEndpoint:
        """Its keys stop working and its minutes stop being billed."""
        return cast(ServerlessEndpoint, self._transport.json("DELETE", self._path(name)))

    def suspend(self, name: str) -> ServerlessEndpoint:
        """Have its calls refused; its minutes go on."""
        return cast(ServerlessEndpoint, self._transport.json("POST", self._path(name) + "/suspend"))

    def reinstate(self, name: str) -> ServerlessEndpoint:
        """Let it be called again."""
        return cast(ServerlessEndpoint, self._transport.json("POST", self._path(name) + "/reinstate"))

    def get_keys(self, name: str) -> EndpointKeys:
        return cast(EndpointKeys, self._transport.json("POST", self._path(name) + "/list-keys"))

    def regenerate_keys(self, name: str, *, key_type: KeyType = "primary") -> EndpointKeys:
        """A new key of that type; the other one stays valid."""
        body = {"key_type": key_type}
        return cast(
            EndpointKeys, self._transport.json("POST", self._path(name) + "/regenerate-keys", json=body)
        )

    def get_logs(self, name: str, *, lines: int = 200) -> str:
        """The last lines of its model server's log."""
        return self._transport.text(self._path(name) + "/logs", params={"lines": lines})

    @staticmethod
    def _path(name: str) -> str:
        return "/api/serverless-endpoints" + path_of(name)


class Deployments(Resource):
    """What serves the models: states, replicas, the last failure."""

    def list(self) -> list[Deployment]:
        return self._all("/api/deployments")


class Usage(Resource):
    """Counted quantities."""

    def list(
        self,
        *,
        organization: str | None = None,
        project: str | None = None,
        start: str | None = None,
        end: str | None = None,
        group_by: str | None = None,
    ) -> UsageReport:
        """Rows in `data`, grouped by a comma list of day, model, endpoint, key, sku, project."""
        params = {
            "organization": organization,
            "project": project,
            "start": start,
            "end": end,
            "group_by": group_by,
        }
        page = self._transport.json("GET", "/api/usage", params=params)
        rows_of(page, "/api/usage")
        return cast(UsageReport, page)


class Receipts(Resource):
    """What single calls used and cost."""

    def get(self, request_id: str) -> Receipt:
        """`request_id` is the call's `x-request-id`."""
        return cast(Receipt, self._transport.json("GET", "/api/receipts" + path_of(request_id)))

    def list(
        self,
        *,
        organization: str | None = None,
        project: str | None = None,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Page[Receipt]:
        """One page; its `next` is the `after` of the page that follows."""
        params = {
            "organization": organization,
            "project": project,
            "start": start,
            "end": end,
            "limit": limit,
            "after": after,
        }
        page = self._transport.json("GET", "/api/receipts", params=params)
        rows_of(page, "/api/receipts")
        return cast("Page[Receipt]", page)

    def iterate(
        self,
        *,
        organization: str | None = None,
        project: str | None = None,
        start: str | None = None,
        end: str | None = None,
    ) -> Iterator[Receipt]:
        """Every receipt, page after page, as it is asked for."""
        after: str | None = None
        while True:
            page = self.list(organization=organization, project=project, start=start, end=end, after=after)
            yield from page["data"]
            after = page.get("next")
            if not after:
                return


class ReconciliationOf(Resource):
    """The proof: what engines counted, what was metered, the ledger, the invoices, the payment provider."""

    def get(
        self, *, organization: str | None = None, start: str | None = None, end: str | None = None
    ) -> Reconciliation:
        """Compare [start, end) by the hour; default: the last day until now. At most seven days."""
        params = {"organization": organization, "start": start, "end": end}
        return cast(Reconciliation, self._transport.json("GET", "/api/reconciliation", params=params))


class Alarms(Resource):
    """What an operator must look at."""

    def list(self, *, kind: str | None = None, limit: int = 50) -> list[Alarm]:
        """The newest, newest first."""
        page = self._transport.json("GET", "/api/alarms", params={"kind": kind, "limit": limit})
        return cast("list[Alarm]", rows_of(page, "/api/alarms"))


class LimitsOf(Resource):
    """Rate limits of keys, projects, organizations and endpoints."""

    def get(self, scope: LimitScope, scope_id: str) -> Limits:
        """The limits in force: those that were set, else the defaults."""
        return cast(Limits, self._transport.json("GET", self._path(scope, scope_id)))

    def set(self, scope: LimitScope, scope_id: str, **limits: int | str | None) -> Limits:
        """In the place of those that were: requests_per_minute, requests_per_day, tokens_per_minute,
        parallel_requests (None: no limit; left out: the default), on_outage."""
        return cast(Limits, self._transport.json("PUT", self._path(scope, scope_id), json=limits))

    def remove(self, scope: LimitScope, scope_id: str) -> Limits:
        """Back to the defaults, which are the answer."""
        return cast(Limits, self._transport.json("DELETE", self._path(scope, scope_id)))

    @staticmethod
    def _path(scope: str, scope_id: str) -> str:
        return "/api/limits" + path_of(scope) + path_of(scope_id)


class Budgets(Resource):
    """Money that a key, project or organization may spend in a day, a month or in all."""

    def create(
        self,
        *,
        amount_usd: str,
        window: BudgetWindow,
        organization: str | None = None,
        project: str | None = None,
        key: str | None = None,
        hard: bool = True,
        alerts: Sequence[int] | None = None,
    ) -> Budget:
        """Of exactly one of organization, project and key. A hard one refuses calls when it is used up.

        `alerts`: shares in per cent at which webhooks are told; by default 50, 80 and 100.
        """
        body = given(
            amount_usd=amount_usd,
            window=window,
            organization=organization,
            project=project,
            key=key,
            hard=hard,
            alerts=None if alerts is None else list(alerts),
        )
        return cast(Budget, self._transport.json("POST", "/api/budgets", json=body))

    def list(self, *, organization: str | None = None) -> list[Budget]:
        return self._all("/api/budgets", organization=organization)

    def get(self, budget_id: str) -> Budget:
        return cast(Budget, self._transport.json("GET", "/api/budgets" + path_of(budget_id)))

    def change(
        self,
        budget_id: str,
        *,
        amount_usd: str | None = None,
        hard: bool | None = None,
        alerts: Sequence[int] | None = None,
    ) -> Budget:
        """Another amount (a top-up is a larger one), kind or alerts; what is spent stays spent."""
        body = given(amount_usd=amount_usd, hard=hard, alerts=None if alerts is None else list(alerts))
        return cast(Budget, self._transport.json("PATCH", "/api/budgets" + path_of(budget_id), json=body))

    def delete(self, budget_id: str) -> Budget:
        """Calls are no longer held to it; the answer is its last state."""
        return cast(Budget, self._transport.json("DELETE", "/api/budgets" + path_of(budget_id)))
