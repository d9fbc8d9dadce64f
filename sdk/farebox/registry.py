"""References to models of Azure's registries, as the catalog's ids."""

from farebox.errors import FareboxConfigError

_REGISTRY = "azureml://"
_MODELS = "/models/"


def catalog_id(text: str) -> str:
    """`azureml://registries/R/models/NAME` as NAME; anything else as it is. FareboxConfigError: it names a version."""
    if not text.startswith(_REGISTRY) or _MODELS not in text:
        return text
    name = text.split(_MODELS, 1)[1]
    if "/versions/" in name or "/labels/" in name:
        raise FareboxConfigError(
            f"model_id: a registry's model is deployed as the catalog has it now; leave its version out: {text}"
        )
    return name
