"""Further deployments of serverless endpoints."""

from typing import TypedDict, cast

from farebox.resource import Resource
from farebox.transport import path_of


class ServerlessDeployment(TypedDict):
    """A model behind a serverless endpoint; `default` is the endpoint's own."""

    name: str
    model: str
    mirror_percent: int
    is_default: bool
    created_at: str


_Deployments = list[ServerlessDeployment]  # inside a class with a method `list`, that name is the method


class ServerlessDeployments(Resource):
    """Models behind one endpoint, reached by the header `azureml-model-deployment`."""

    def put(self, endpoint: str, name: str, *, model: str, mirror_percent: int = 0) -> ServerlessDeployment:
        """Add or replace one; with `mirror_percent` it gets copies of that share of the calls to `default`."""
        body = {"model": model, "mirror_percent": mirror_percent}
        return cast(ServerlessDeployment, self._transport.json("PUT", _path(endpoint, name), json=body))

    def list(self, endpoint: str) -> _Deployments:
        path = "/api/serverless-endpoints" + path_of(endpoint) + "/deployments"
        return cast(_Deployments, self._transport.json("GET", path)["data"])

    def delete(self, endpoint: str, name: str) -> ServerlessDeployment:
        """Calls that name it are answered 404."""
        return cast(ServerlessDeployment, self._transport.json("DELETE", _path(endpoint, name)))


def _path(endpoint: str, name: str) -> str:
    return "/api/serverless-endpoints" + path_of(endpoint) + "/deployments" + path_of(name)
