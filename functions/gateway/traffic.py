"""Which deployment of an online endpoint a call goes to, and which one gets a copy of it."""

import random
from collections.abc import Mapping
from typing import Final

from core.errors import NotFound
from serving.route import Route
from serving.traffic import DEPLOYMENT_HEADER, PERCENT
from wire.suggestions import suggest

_chance: Final = random.Random()


def choose(route: Route, headers: Mapping[bytes, bytes]) -> tuple[Route, Route | None]:
    """The route of the deployment that serves a call, and of the one that gets a copy, if any.

    NotFound: the header names no deployment, or none has traffic.
    """
    split = route.split
    if split is None:
        return route, None
    wanted = headers.get(DEPLOYMENT_HEADER)
    if wanted is not None:
        return _named(route, wanted.decode("latin-1")), None
    # Two draws: with one the copies would all be of calls to the first deployment.
    chosen = split.choose(int(_chance.random() * PERCENT))
    if chosen is None:
        raise NotFound(
            f"No deployment of the endpoint `{route.endpoint_name}` has traffic; give one some with "
            '`farebox online-endpoint update --traffic "NAME=100"`, or name one in the header '
            "`azureml-model-deployment`.",
            code="no_traffic",
        )
    shadow = split.shadow(int(_chance.random() * PERCENT)) if split.mirror is not None else None
    return chosen, shadow


def _named(route: Route, name: str) -> Route:
    assert route.split is not None, "checked by choose"
    found = route.split.routes.get(name)
    if found is None:
        close = suggest(name, route.split.routes)
        hint = f"; did you mean `{close}`?" if close else ""
        raise NotFound(
            f"The endpoint `{route.endpoint_name}` has no deployment `{name[:64]}`{hint}",
            code="deployment_not_found",
            param="azureml-model-deployment",
        )
    return found
