"""How an online endpoint's calls are divided between its deployments: a live split, and a shadow that gets copies.

Pure. Source of the rules: Azure Machine Learning, "Safely roll out online endpoints" (R4.1 to R4.6 of our reference).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serving.online.collecting import Collecting

if TYPE_CHECKING:
    from serving.route import Route

DEPLOYMENT_HEADER = b"azureml-model-deployment"
PERCENT = 100


@dataclass(frozen=True, slots=True)
class Scoring:
    """How one deployment of an online endpoint is called; times in milliseconds."""

    deployment: str  # its name
    path: str = "/score"  # of the server, for POST to the endpoint's `/score`
    any_path: bool = False  # a server of the user's own: other paths below the endpoint reach it too
    timeout_ms: int = 5_000  # a call that takes longer is answered 408
    each: int = 1  # calls that one instance takes at once
    instances: int = 1
    collecting: Collecting | None = None  # payloads to keep
    serverless: bool = False  # of an endpoint that has no instances of its own
    logged: bool = False  # a line in the log for each call
    hold_ms: int = 0  # with no instance: how long a call waits for one without being asked to

    @property
    def most_pending(self) -> int:
        """Calls being served or waiting; one more is answered 429."""
        return 2 * self.each * max(1, self.instances)


@dataclass(frozen=True, slots=True)
class Split:
    """An endpoint's deployments by name, and who gets which share of its calls, in percent."""

    routes: Mapping[str, "Route"] = field(hash=False)
    shares: tuple[tuple[str, int], ...] = ()  # of those with live traffic; they sum to 100 or there is none
    mirror: tuple[str, int] | None = None

    def choose(self, point: int) -> "Route | None":
        """The route for a call that drew `point` (0 ≤ point < 100); None: no deployment has traffic."""
        for name, share in self.shares:
            point -= share
            if point < 0:
                return self.routes.get(name)
        return None

    def shadow(self, point: int) -> "Route | None":
        """The route that gets a copy of a call that drew `point`, None for most."""
        if self.mirror is None or point >= self.mirror[1]:
            return None
        return self.routes.get(self.mirror[0])

    @property
    def speaks_openai(self) -> bool:
        """Whether one of the deployments is a model of the catalog."""
        return any(route.task != "scoring" for route in self.routes.values())

    def of(self, deployment_id: str) -> "Route | None":
        """The route of the deployment with that id."""
        return next((route for route in self.routes.values() if route.deployment_id == deployment_id), None)

    @property
    def deployment_ids(self) -> tuple[str, ...]:
        """Of all deployments."""
        return tuple(route.deployment_id for route in self.routes.values())
