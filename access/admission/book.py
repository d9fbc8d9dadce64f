"""The policies in force, in memory: which limits and budgets a call falls under."""

from collections.abc import Iterable
from typing import Final

from access.admission.model import ONLINE_DEFAULT, SERVERLESS_DEFAULT, Limits, ScopePolicy
from access.admission.values import AdmitRequest

_MAX_PATHS: Final = 200_000
_Path = tuple[str, str, str, str, bool]


class PolicyBook:
    """Read on each call, changed by one writer: a call costs one look-up, however many keys there are."""

    def __init__(self, endpoint_default: Limits | None = SERVERLESS_DEFAULT) -> None:
        self._endpoint_default = endpoint_default
        self._policies: dict[str, ScopePolicy] = {}
        self._paths: dict[_Path, tuple[ScopePolicy, ...]] = {}
        self._owners: dict[str, str] = {}  # scope by budget
        self.generation = 0  # grows with each change
        self.any_budget = False  # without one, nothing need be priced

    def replace(self, policies: Iterable[ScopePolicy]) -> None:
        """Forget everything and take these."""
        self._policies = {policy.id: policy for policy in policies}
        self._owners = {
            budget.id: policy.id for policy in self._policies.values() for budget in policy.budgets
        }
        self._changed()

    def put(self, policy: ScopePolicy) -> None:
        """Take the place of what the scope had; a policy without limits and budgets takes it away."""
        before = self._policies.pop(policy.id, None)
        for budget in before.budgets if before is not None else ():
            del self._owners[budget.id]
        if policy.limits is not None or policy.budgets or policy.open_on_outage:
            self._policies[policy.id] = policy
            self._owners |= {budget.id: policy.id for budget in policy.budgets}
        self._changed()

    def _changed(self) -> None:
        self._paths.clear()
        self.generation += 1
        self.any_budget = bool(self._owners)

    def of(self, request: AdmitRequest) -> tuple[ScopePolicy, ...]:
        """The policies of the call's key, project, organization and endpoint, where they have one."""
        path = (request.key_id, request.project_id, request.org_id, request.endpoint_id, request.online)
        found = self._paths.get(path)
        if found is None:
            if len(self._paths) >= _MAX_PATHS:
                self._paths.clear()
            found = self._paths[path] = self._find(path)
        return found

    def _find(self, path: _Path) -> tuple[ScopePolicy, ...]:
        policies = [self._policies.get(scope_id) for scope_id in path[:4]]
        endpoint_id, online = path[3], path[4]
        if policies[3] is None and self._endpoint_default is not None and endpoint_id:
            default = ONLINE_DEFAULT if online else self._endpoint_default
            policies[3] = ScopePolicy("endpoint", endpoint_id, default)
        return tuple(policy for policy in policies if policy is not None)

    def scope(self, scope_id: str) -> ScopePolicy | None:
        """What is configured for the scope, None: nothing."""
        return self._policies.get(scope_id)

    def owner(self, budget_id: str) -> ScopePolicy | None:
        """The policy that has the budget."""
        return self._policies.get(self._owners.get(budget_id, ""))

    def policies(self) -> Iterable[ScopePolicy]:
        """Everything that is configured."""
        return self._policies.values()
