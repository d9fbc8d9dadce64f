"""LoRA fine-tunes: models of their own in the catalog, with their own prices, served by their base's pool.

An engine loads the adapters of a pool when it starts; one that an endpoint needs and the running server lacks has
that server replaced (`serving.supervision`).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, union

from catalog.model import ModelSpec
from catalog.store import find_model, get_model, list_models
from core.errors import Conflict, Invalid
from core.log import get_logger
from serving.model import Deployment
from serving.store import model_in_use
from serving.tables import endpoints, serverless_deployments

_log = get_logger(__name__)

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# vllm.config.lora.MaxLoRARanks
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_MAX_CONFIG_BYTES = 1024 * 1024


def pool_model(connection: Connection, spec: ModelSpec) -> ModelSpec:
    """The model whose pool serves `spec`: its base, or itself. NotFound: the base was removed."""
    return spec if spec.adapter is None else get_model(connection, spec.adapter.base, "adapter.base").spec


def check_fine_tune(connection: Connection, spec: ModelSpec) -> None:
    """Before the catalog takes it. Invalid or NotFound names what is wrong with the adapter or its base."""
    if spec.external or spec.adapter is not None:
        check_no_fine_tunes(connection, spec.id)  # it could not be their base any more
    _check_pool_stays(connection, spec)
    if spec.adapter is None:
        return
    base = pool_model(connection, spec)
    if base.adapter is not None:
        raise _wrong("base", f"{base.id} is a fine-tune itself; name its base, {base.adapter.base}")
    if base.external:
        raise _wrong(
            "base",
            f"{base.id} is an attached server: load the adapter there, and add it as a model with engine: "
            "{kind: external, url: ..., model: NAME}",
        )
    if base.task != spec.task:
        raise _wrong("base", f"{base.id} is a {base.task} model, and this one is said to be {spec.task}")
    if spec.context_length > base.context_length:
        raise Invalid(
            f"context_length: {spec.context_length} is longer than that of its base, {base.context_length}",
            param="context_length",
        )
    adapter_rank(spec)


def _check_pool_stays(connection: Connection, spec: ModelSpec) -> None:
    """Conflict: endpoints lead to the pool of the entry as it was, and would not to that of another base."""
    known = find_model(connection, spec.id)
    if known is None or _base(known.spec) == _base(spec):
        return
    users = model_in_use(connection, spec.id)
    if users:
        raise Conflict(
            f"adapter: {spec.id} is used by endpoint {', '.join(users[:5])}, so it keeps its base; give the "
            "other one an id of its own",
            code="model_in_use",
            param="adapter",
        )


def _base(spec: ModelSpec) -> str:
    return "" if spec.adapter is None else spec.adapter.base


def check_no_fine_tunes(connection: Connection, model_id: str) -> None:
    """Conflict: fine-tunes in the catalog need this base."""
    found = [
        each.spec.id
        for each in list_models(connection)
        if each.spec.adapter is not None and each.spec.adapter.base == model_id
    ]
    if found:
        raise Conflict(
            f"model {model_id} is the base of {', '.join(found[:5])}; remove those first",
            code="model_in_use",
            param="model",
        )


def fine_tunes_of(connection: Connection, pool: Deployment) -> list[ModelSpec]:
    """The fine-tunes that a pool's server has to know, because a living endpoint offers them; in order of id."""
    own = select(endpoints.c.model_id).where(
        endpoints.c.deployment_id == pool.id, endpoints.c.deleted_ms.is_(None)
    )
    further = (
        select(serverless_deployments.c.model_id)
        .join(endpoints, endpoints.c.id == serverless_deployments.c.endpoint_id)
        .where(serverless_deployments.c.deployment_id == pool.id, endpoints.c.deleted_ms.is_(None))
    )
    wanted = set(connection.execute(union(own, further)).scalars()) - {pool.model_id}
    found = (find_model(connection, model_id) for model_id in sorted(wanted))
    return [each.spec for each in found if each is not None and _base(each.spec) == pool.model_id]


def adapters_of(fine_tunes: Iterable[ModelSpec]) -> frozenset[tuple[str, str]]:
    """Id and folder of each: what tells whether a server has it."""
    return frozenset((each.id, each.adapter.path) for each in fine_tunes if each.adapter is not None)


def usable(fine_tunes: Iterable[ModelSpec], *, warn: bool = False) -> dict[ModelSpec, int]:
    """The rank of each whose adapter is there. One that was lost must not keep its base from starting."""
    found = {}
    for each in fine_tunes:
        try:
            found[each] = adapter_rank(each)
        except Invalid as error:
            if warn:
                _log.warning("a fine-tune is not loaded", extra={"model": each.id, "reason": error.message})
    return found


def adapter_rank(spec: ModelSpec) -> int:
    """The rank of the adapter, from its own `adapter_config.json`. Invalid: there is no usable adapter there."""
    assert spec.adapter is not None, "a fine-tune"
    folder = Path(spec.adapter.path)
    config = _config(folder)
    if config.get("peft_type", "LORA") != "LORA":
        raise _wrong("path", f"{folder} has an adapter of type {config['peft_type']!r:.40}; LORA is served")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= RANKS[-1]:
        raise _wrong("path", f"{folder / CONFIG}: r: expected a rank from 1 to {RANKS[-1]}, got {rank!r:.40}")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise _wrong("path", f"{folder} has neither {' nor '.join(_WEIGHTS)}")
    return rank


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise _wrong("path", f"{path} is larger than {_MAX_CONFIG_BYTES} bytes")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise _wrong(
            "path",
            f"{path} cannot be read ({error.strerror}); give the folder that PEFT's save_pretrained wrote",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _wrong("path", f"{path} is not JSON: {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise _wrong("path", f"{path}: expected an object")
    return found


def _wrong(field: str, message: str) -> Invalid:
    return Invalid(f"adapter.{field}: {message}", param=f"adapter.{field}")
