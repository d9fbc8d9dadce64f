"""What the gateway must know to send a call to a model server.

Compiled: every call reads some thirty of these attributes. So they are dataclasses without slots, which mypyc replaces by
its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mypy_extensions import mypyc_attr

from serving.traffic import Scoring, Split


@mypyc_attr(acyclic=True)
@dataclass(frozen=True)
class Tariff:
    """Pico-dollars per unit by SKU, from an instant on until the next tariff."""

    starts_ms: int
    unit_prices: Mapping[str, int] = field(hash=False)


@mypyc_attr(acyclic=True)
@dataclass(frozen=True)
class Route:
    """One callable name, resolved. `urls` are base URLs of servers ready now (empty: wake one first)."""

    endpoint_id: str
    endpoint_name: str
    created_ms: int
    org_id: str
    project_id: str
    model_id: str
    task: str
    context_length: int
    deployment_id: str
    served_model: str  # the name the server knows the model by
    external: bool  # a server that is attached, not started by us: always thought to be up
    continuous_usage: bool  # the server understands vLLM's stream_options.continuous_usage_stats
    upstream_key_env: str  # name of the environment variable with the attached server's API key, or ""
    urls: tuple[str, ...]
    tariffs: tuple[Tariff, ...] = ()  # oldest first: in force when it was resolved, and those already decided
    max_parallel: int = 0  # calls that each of the servers takes at once; 0: the gateway's own setting
    scoring: Scoring | None = None  # of a deployment of an online endpoint
    # Of an online endpoint: the deployment is still to be chosen, and nothing else counts.
    split: Split | None = None
    private: bool = False  # callers in private networks only
    screened: bool = False  # its prompts and answers are shown to the content check, if there is one
    suspended: str = ""  # why calls are refused, as an error's code: endpoint_suspended, subscription_missing

    @property
    def refs(self) -> tuple[str, ...]:
        """Ids of the deployments that it leads to: when one of them changes it must be resolved anew."""
        return (self.deployment_id,) if self.split is None else self.split.deployment_ids

    def unit_prices(self, at_ms: int) -> Mapping[str, int]:
        """Pico-dollars per unit by SKU at an instant; right across a price change, so a route need not expire."""
        found: Mapping[str, int] = {}
        for tariff in self.tariffs:
            if tariff.starts_ms <= at_ms:
                found = tariff.unit_prices
        return found
