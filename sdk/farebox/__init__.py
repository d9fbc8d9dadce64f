"""Farebox: Python client and command line.

    import farebox

    with farebox.Client() as client:
        client.serverless_endpoints.create("my-qwen", model="Qwen/Qwen3-0.6B")

The client is imported on first use, so that the command line starts fast.
"""

from typing import TYPE_CHECKING

from farebox.errors import (
    FareboxAPIError,
    FareboxConfigError,
    FareboxConnectionError,
    FareboxError,
)

if TYPE_CHECKING:
    from farebox.client import Client
    from farebox.entities import (
        load_environment,
        load_model,
        load_online_deployment,
        load_online_endpoint,
    )
    from farebox.ml_client import MLClient

__version__ = "0.1.0"

__all__ = [
    "Client",
    "FareboxAPIError",
    "FareboxConfigError",
    "FareboxConnectionError",
    "FareboxError",
    "MLClient",
    "__version__",
    "load_environment",
    "load_model",
    "load_online_deployment",
    "load_online_endpoint",
]


def __getattr__(name: str) -> object:
    if name == "Client":
        from farebox.client import Client

        return Client
    if name == "MLClient":
        from farebox.ml_client import MLClient

        return MLClient
    if name.startswith("load_") and name in __all__:
        from farebox import entities

        return getattr(entities, name)
    raise AttributeError(f"module 'farebox' has no attribute {name!r}")
