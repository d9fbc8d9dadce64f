"""What a catalog entry says of a model: plain frozen values. `catalog.load` makes them from YAML or JSON.

"" and 0 stand for "not stated" throughout, so that no reader has to tell None from empty.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from catalog.terms import Terms

Task = Literal["chat", "completion", "embedding", "rerank", "transcription"]
EngineKind = Literal["vllm", "vllm-cpu", "external"]
Origin = Literal["builtin", "operator"]
Outcome = Literal["added", "changed", "unchanged"]

MAX_PARALLEL = 100_000

TASKS: tuple[Task, ...] = ("chat", "completion", "embedding", "rerank", "transcription")
ENGINE_KINDS: tuple[EngineKind, ...] = ("vllm", "vllm-cpu", "external")
TOKEN_PRICES = ("input", "cached_input", "output", "batch_input", "batch_cached_input", "batch_output")
UNIT_PRICES = ("audio_second", "endpoint_minute")
# Before an instance type: what the minutes of online endpoints' instances are priced as, by their endpoint_minute.
INSTANCE_MODEL = "instance:"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights come from: a repository of a model hub, or a model that Farebox builds itself."""

    repository: str = ""
    revision: str = "main"
    builtin: str = ""  # "sample": built on this machine; then there is no repository


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA fine-tune: the weights that change a base model of the catalog, whose servers load them."""

    base: str  # the base's catalog id
    path: str  # absolute folder on the machine of the servers, as PEFT's save_pretrained writes it


@dataclass(frozen=True, slots=True)
class License:
    """The license of the weights; `accept_terms` when the hub asks each user to accept terms first."""

    id: str
    url: str = ""
    accept_terms: bool = False


@dataclass(frozen=True, slots=True)
class Marketplace:
    """Somebody else's offer: a project subscribes to it, and so accepts its terms, before it deploys the model."""

    offer: str
    terms_url: str
    publisher: str = ""
    plan: str = ""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What one replica needs. 0: not stated."""

    gpu_memory_gib: float = 0.0
    gpu_count: int = 0


@dataclass(frozen=True, slots=True)
class Engine:
    """What serves the model. `args` are for a started vLLM, the rest for an attached (`external`) server.

    `url` is the base without `/v1`: Farebox adds `/v1/chat/completions` and so on itself. `urls` stands in its
    place where several servers are attached.
    """

    kind: EngineKind = "vllm"
    args: tuple[str, ...] = ()
    url: str = ""
    urls: tuple[str, ...] = ()
    model: str = ""  # the name that the attached server knows the model by; "" means the catalog id
    api_key_env: str = ""  # name of the environment variable that holds the attached server's key
    continuous_usage: bool = False  # it understands vLLM's stream_options.continuous_usage_stats
    tokenizer: str = ""  # what it tokenizes with: an absolute path here, or a repository that was fetched
    max_parallel: int = 0  # calls that one server takes at once

    @property
    def servers(self) -> tuple[str, ...]:
        """Base addresses of the attached servers."""
        return self.urls or (self.url,)

    @property
    def parallel(self) -> int:
        """Calls that one server takes at once, where the entry or its `--max-num-seqs` says so; else 0."""
        if self.max_parallel:
            return self.max_parallel
        words = [word for arg in self.args for word in arg.split("=", 1)]
        for name, value in pairwise(words):
            if name.replace("_", "-") == "--max-num-seqs" and value.isascii() and value.isdigit():
                return min(int(value[:9]), MAX_PARALLEL)
        return 0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a caller may ask of the model."""

    tools: bool = False
    vision: bool = False
    reasoning: bool = False
    json_schema: bool = False
    prompt_caching: bool = False


@dataclass(frozen=True, slots=True)
class Prices:
    """Pico-dollars per token, second or minute; None: this SKU is not sold for this task."""

    input: int | None = None
    cached_input: int | None = None
    output: int | None = None
    audio_second: int | None = None
    endpoint_minute: int = 0
    # Tokens of batch calls; None: they cost what other calls' cost.
    batch_input: int | None = None
    batch_cached_input: int | None = None
    batch_output: int | None = None

    def by_sku(self) -> dict[str, int]:
        """The prices that there are, by SKU."""
        named = [(sku, getattr(self, sku)) for sku in (*TOKEN_PRICES, *UNIT_PRICES)]
        return {sku: price for sku, price in named if price is not None}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of the catalog."""

    id: str
    task: Task
    prices: Prices
    name: str = ""
    publisher: str = ""
    description: str = ""
    source: Source | None = None
    adapter: Adapter | None = None  # then there is no source and no engine: those of its base hold
    license: License | None = None
    marketplace: Marketplace | None = None
    context_length: int = 0  # tokens; always stated for chat and completion
    parameters: int = 0
    active_parameters: int = 0
    precision: str = ""
    requirements: Requirements = Requirements()
    engine: Engine = Engine()
    capabilities: Capabilities = Capabilities()
    references: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    sample: bool = False

    @property
    def external(self) -> bool:
        """True for a server that is attached, not started by us."""
        return self.engine.kind == "external"

    @property
    def served_model(self) -> str:
        """The name that the model server knows the model by."""
        return self.engine.model or self.id

    @property
    def display_name(self) -> str:
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model as the catalog keeps it."""

    spec: ModelSpec
    origin: Origin
    created_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """Prices from `starts_ms` on, until the next version starts. Immutable once begun.

    `org_id` "" is the list, for everybody; an organization's own version goes before it until one is `ended`.
    """

    id: str
    model_id: str
    starts_ms: int
    unit_prices: dict[str, int] = field(hash=False)  # SKU to pico-dollars
    created_ms: int = 0
    org_id: str = ""
    terms: Terms = field(default_factory=dict, hash=False)
    ended: bool = False


@dataclass(frozen=True, slots=True)
class PutResult:
    """What `put_model` did. `new_price` is the version that it made, if it made one."""

    model: CatalogModel
    outcome: Outcome
    new_price: PriceVersion | None = None
