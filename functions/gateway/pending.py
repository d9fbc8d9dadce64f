"""How many calls each deployment of an online endpoint has taken, and how many it may."""

from core.errors import RateLimited
from serving.route import Route


class Pending:
    """Calls of each deployment that were taken and are not over."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def check(self, route: Route) -> None:
        """RateLimited when as many are pending as may."""
        scoring = route.scoring
        assert scoring is not None, "of an online endpoint"
        pending = self._counts.get(route.deployment_id, 0)
        if pending >= scoring.most_pending:
            raise RateLimited(
                f"{pending} calls are pending at the deployment `{scoring.deployment}`, twice as many as its "
                f"{scoring.instances} instance(s) take at once ({scoring.each} each); try again with backoff.",
                code="too_many_pending_requests",
                retry_after_s=max(1.0, scoring.timeout_ms / 2000),
            )

    def begin(self, deployment_id: str) -> None:
        """One more."""
        self._counts[deployment_id] = self._counts.get(deployment_id, 0) + 1

    def end(self, deployment_id: str) -> None:
        """One is over."""
        left = self._counts[deployment_id] - 1
        if left:
            self._counts[deployment_id] = left
        else:
            del self._counts[deployment_id]
