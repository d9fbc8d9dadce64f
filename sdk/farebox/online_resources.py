"""Online endpoints, their deployments, registered models and environments."""

import builtins
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from farebox.documents import absolute_paths
from farebox.entities import (
    Environment,
    Model,
    ModelPackage,
    OnlineDeployment,
    OnlineEndpoint,
    deployment_of,
    endpoint_of,
)
from farebox.errors import FareboxAPIError, FareboxConfigError
from farebox.polling import LROPoller, begun
from farebox.resource import Resource
from farebox.scripts import check_script
from farebox.transport import error_of, path_of
from farebox.unpack import unpack

_MAX_REQUEST_BYTES = 100 * 1024 * 1024
_SHOWN_CHARS = 1000


@dataclass(frozen=True)
class EndpointAuthKeys:
    """Either key opens the endpoint."""

    primary_key: str
    secondary_key: str


@dataclass(frozen=True)
class EndpointAuthToken:
    """A token for calls. Times are ISO 8601 in UTC."""

    access_token: str
    expiry_time_utc: str
    refresh_after_time_utc: str


class OnlineEndpoints(Resource):
    """Stable addresses whose calls are split between deployments."""

    def begin_create_or_update(
        self, endpoint: OnlineEndpoint, *, local: bool = False
    ) -> LROPoller[OnlineEndpoint]:
        """Make it, or put it in place of what it was. `traffic` that is None stays."""
        document = endpoint.to_dict()
        name = _name(document, "endpoint")
        if local and (document.get("traffic") or document.get("mirror_traffic")):
            raise FareboxConfigError("a local endpoint has no traffic rules; leave local or the traffic out")
        exists = self._transport.send("GET", self._path(name), check=False).is_success
        return self.poller(self.put(name, document) if exists else self.create(document), name)

    def get(self, name: str, *, local: bool = False) -> OnlineEndpoint:
        return endpoint_of(self.read(name))

    def list(self, *, project: str | None = None, local: bool = False) -> list[OnlineEndpoint]:
        return [endpoint_of(row) for row in self.rows(project=project)]

    def begin_delete(self, name: str, *, local: bool = False) -> LROPoller[None]:
        """With all its deployments."""
        return LROPoller(self._transport, self.delete(name), lambda: None)

    def get_keys(self, name: str) -> EndpointAuthKeys | EndpointAuthToken:
        """Its keys, or a new token, as its auth_mode is."""
        found = self.credentials(name)
        if "primaryKey" in found:
            return EndpointAuthKeys(found["primaryKey"], found["secondaryKey"])
        return EndpointAuthToken(found["accessToken"], found["expiryTimeUtc"], found["refreshAfterTimeUtc"])

    def begin_regenerate_keys(self, name: str, *, key_type: str = "primary") -> LROPoller[EndpointAuthKeys]:
        """A new key of that type; the other one stays valid."""
        keys = self.regenerate(name, key_type)
        answer = {"operation": {"id": "", "state": "Succeeded", "url": ""}}
        made = EndpointAuthKeys(keys["primaryKey"], keys["secondaryKey"])
        return LROPoller(self._transport, answer, lambda: made)

    def invoke(
        self,
        endpoint_name: str,
        *,
        request_file: str | Path | None = None,
        input_data: object = None,
        deployment_name: str | None = None,
        path: str = "/score",
        local: bool = False,
    ) -> str:
        """Call the endpoint with a file, or with a value as JSON; the answer's text.

        `deployment_name` calls that deployment whatever the split is. FareboxAPIError for anything but 2xx.
        """
        content = _body(request_file, input_data)
        if not path.startswith("/"):
            raise FareboxConfigError(f"path: expected one such as /score, got {path!r}")
        found = self.credentials(endpoint_name)
        request = self._transport.build(
            "POST",
            f"/endpoints{path_of(endpoint_name)}{path}",
            content=content,
            content_type="application/json",
            api_key=found.get("primaryKey") or found["accessToken"],
        )
        if deployment_name:
            request.headers["azureml-model-deployment"] = deployment_name
        response = self._transport.send_request(request)
        if response.is_success:
            return response.text
        raise _call_error(response)

    # --- the API as it is, for the command line ---------------------------------------------------

    def create(self, document: Mapping[str, Any]) -> dict[str, Any]:
        return begun(self._transport.json("POST", "/api/online-endpoints", json=document))

    def put(self, name: str, document: Mapping[str, Any]) -> dict[str, Any]:
        return begun(self._transport.json("PUT", self._path(name), json=document))

    def patch(self, name: str, document: Mapping[str, Any]) -> dict[str, Any]:
        return begun(self._transport.json("PATCH", self._path(name), json=document))

    def put_traffic(
        self,
        name: str,
        traffic: Mapping[str, int] | None = None,
        mirror_traffic: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Replace a split; the one that is None stays."""
        body = {"traffic": traffic, "mirror_traffic": mirror_traffic}
        given = {field: dict(value) for field, value in body.items() if value is not None}
        return begun(self._transport.json("PUT", self._path(name) + "/traffic", json=given))

    def delete(self, name: str) -> dict[str, Any]:
        return begun(self._transport.json("DELETE", self._path(name)))

    def read(self, name: str) -> dict[str, Any]:
        return dict(self._transport.json("GET", self._path(name)))

    def rows(self, *, project: str | None = None) -> builtins.list[dict[str, Any]]:
        return self._all("/api/online-endpoints", project=project)

    def credentials(self, name: str) -> dict[str, Any]:
        """Keys or a token, under the names of Azure ML's command line."""
        mode = self.read(name)["auth_mode"]
        if mode == "aad_token":
            raise FareboxConfigError(
                f"the endpoint {name!r} takes tokens of an identity provider; ask that one for a token"
            )
        verb = "list-keys" if mode == "key" else "token"
        return dict(self._transport.json("POST", f"{self._path(name)}/{verb}"))

    def regenerate(self, name: str, key_type: str) -> dict[str, Any]:
        body = {"key_type": key_type}
        return dict(self._transport.json("POST", self._path(name) + "/regenerate-keys", json=body))

    def poller(self, answer: dict[str, Any], name: str) -> LROPoller[OnlineEndpoint]:
        return LROPoller(self._transport, answer, lambda: self.get(name))

    @staticmethod
    def _path(name: str) -> str:
        return "/api/online-endpoints" + path_of(name)


class OnlineDeployments(Resource):
    """What answers the calls of online endpoints."""

    def begin_create_or_update(
        self,
        deployment: OnlineDeployment,
        *,
        local: bool = False,
        all_traffic: bool = False,
        skip_script_validation: bool = False,
    ) -> LROPoller[OnlineDeployment]:
        """Make it, or put it in place of what it was. Its script is looked at first: ScriptError."""
        document = deployment.to_dict()
        name, endpoint = _name(document, "deployment"), document.get("endpoint_name")
        if not endpoint:
            raise FareboxConfigError("endpoint_name: the deployment has none")
        if not skip_script_validation:
            check_script(document)
        answer = self.put(endpoint, name, document, all_traffic=all_traffic)
        return self.poller(answer, endpoint, name)

    def get(self, name: str, endpoint_name: str, *, local: bool = False) -> OnlineDeployment:
        return deployment_of(self.read(endpoint_name, name))

    def list(self, endpoint_name: str, *, local: bool = False) -> list[OnlineDeployment]:
        return [deployment_of(row) for row in self.rows(endpoint_name)]

    def begin_delete(self, name: str, endpoint_name: str, *, local: bool = False) -> LROPoller[None]:
        """Refused while it has traffic."""
        return LROPoller(self._transport, self.delete(endpoint_name, name), lambda: None)

    def get_logs(
        self,
        name: str,
        endpoint_name: str,
        lines: int = 200,
        *,
        container_type: str | None = None,
        local: bool = False,
    ) -> str:
        """The last lines of its newest instance's log."""
        params = {"lines": lines, "container": container_type}
        return self._transport.text(self._path(endpoint_name, name) + "/logs", params=params)

    # --- the API as it is, for the command line ---------------------------------------------------

    def create(
        self, endpoint: str, document: Mapping[str, Any], *, all_traffic: bool = False
    ) -> dict[str, Any]:
        path = f"/api/online-endpoints{path_of(endpoint)}/deployments"
        return self._write("POST", path, document, all_traffic)

    def put(
        self, endpoint: str, name: str, document: Mapping[str, Any], *, all_traffic: bool = False
    ) -> dict[str, Any]:
        return self._write("PUT", self._path(endpoint, name), document, all_traffic)

    def patch(self, endpoint: str, name: str, document: Mapping[str, Any]) -> dict[str, Any]:
        return self._write("PATCH", self._path(endpoint, name), document, False)

    def render(
        self,
        document: Mapping[str, Any],
        *,
        storage_uri: str | None = None,
        image: str | None = None,
        namespace: str = "default",
    ) -> dict[str, Any]:
        """The deployment as resources for a cluster, in `manifests`; nothing is made."""
        params = {"namespace": namespace, "storage_uri": storage_uri, "image": image}
        path = "/api/render/online-deployment"
        return dict(self._transport.json("POST", path, json=document, params=params))

    def delete(self, endpoint: str, name: str) -> dict[str, Any]:
        return begun(self._transport.json("DELETE", self._path(endpoint, name)))

    def read(self, endpoint: str, name: str) -> dict[str, Any]:
        return dict(self._transport.json("GET", self._path(endpoint, name)))

    def rows(self, endpoint: str) -> builtins.list[dict[str, Any]]:
        return self._all(f"/api/online-endpoints{path_of(endpoint)}/deployments")

    def poller(self, answer: dict[str, Any], endpoint: str, name: str) -> LROPoller[OnlineDeployment]:
        return LROPoller(self._transport, answer, lambda: self.get(name, endpoint))

    def _write(
        self, method: str, path: str, document: Mapping[str, Any], all_traffic: bool
    ) -> dict[str, Any]:
        # Copying a large model takes longer than other calls.
        params = {"all_traffic": "true"} if all_traffic else None
        return begun(self._transport.json(method, path, json=document, params=params, timeout_s=3600.0))

    @staticmethod
    def _path(endpoint: str, name: str) -> str:
        return f"/api/online-endpoints{path_of(endpoint)}/deployments{path_of(name)}"


class _Assets(Resource):
    _base = ""

    def register(self, document: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self._transport.json("POST", self._base, json=document))

    def rows(self, name: str | None = None) -> builtins.list[dict[str, Any]]:
        return self._all(self._base, name=name)

    def read(self, name: str, version: str = "latest") -> dict[str, Any]:
        return dict(self._transport.json("GET", self._base + path_of(name, "versions", version)))

    def delete(self, name: str, version: str) -> dict[str, Any]:
        return dict(self._transport.json("DELETE", self._base + path_of(name, "versions", version)))

    def _archive(self, name: str, version: str, what: str) -> Iterator[bytes]:
        path = self._base + path_of(name, "versions", version, what)
        with self._transport.stream(self._transport.build("GET", path), 600.0) as response:
            yield from response.iter_bytes()


class RegisteredModels(_Assets):
    """Local models with a name and a version."""

    _base = "/api/registered-models"

    def create_or_update(self, model: Model) -> Model:
        return _asset(Model, self.register(_document(model)))

    def get(self, name: str, version: str | None = None, label: str | None = None) -> Model:
        return _asset(Model, self.read(name, version or label or "latest"))

    def list(self, name: str | None = None) -> builtins.list[Model]:
        return [_asset(Model, row) for row in self.rows(name)]

    def package(self, name: str, version: str, model_package: ModelPackage) -> Environment:
        """Freeze the model with its code and environment; the environment that a deployment names."""
        document = model_package.to_dict()
        absolute_paths(document)
        return _asset(Environment, self.make_package(name, version, document))

    def download(self, name: str, version: str, download_path: str | Path = ".") -> Path:
        """Copy the model's folder or file below `download_path`; where it is then. What is there is not replaced."""
        return unpack(self._archive(name, version, "content"), Path(download_path) / name)

    def make_package(self, name: str, version: str, document: Mapping[str, Any]) -> dict[str, Any]:
        path = self._base + path_of(name, "versions", version, "package")
        return dict(self._transport.json("POST", path, json=document, timeout_s=3600.0))


class Environments(_Assets):
    """What scripts run in, with a name and a version."""

    _base = "/api/environments"

    def create_or_update(self, environment: Environment) -> Environment:
        return _asset(Environment, self.register(_document(environment)))

    def get(self, name: str, version: str | None = None, label: str | None = None) -> Environment:
        return _asset(Environment, self.read(name, version or label or "latest"))

    def list(self, name: str | None = None) -> builtins.list[Environment]:
        return [_asset(Environment, row) for row in self.rows(name)]

    def download_package(self, name: str, version: str) -> Iterator[bytes]:
        """Of an environment that is a package: the tar archive that `docker build` takes, piece by piece."""
        return self._archive(name, version, "package")


_Asset = TypeVar("_Asset", Model, Environment)


def _asset(kind: type[_Asset], row: dict[str, Any]) -> _Asset:
    known = {"name": row["name"], "version": row["version"], "id": row["id"]}
    return kind.from_dict({**row["document"], **known})


def _document(entity: Model | Environment) -> dict[str, Any]:
    document = entity.to_dict()
    absolute_paths(document)
    return document


def _name(document: Mapping[str, Any], what: str) -> str:
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise FareboxConfigError(f"name: the {what} has none")
    return name


def _body(request_file: str | Path | None, input_data: object) -> bytes:
    if request_file is None:
        return json.dumps(input_data).encode() if input_data is not None else b""
    if input_data is not None:
        raise FareboxConfigError("give request_file or input_data, not both")
    try:
        with open(request_file, "rb") as file:
            content = file.read(_MAX_REQUEST_BYTES + 1)
    except OSError as error:
        raise FareboxConfigError(f"request_file: {request_file}: {error.strerror or error}") from None
    if len(content) > _MAX_REQUEST_BYTES:
        raise FareboxConfigError(f"request_file: {request_file} is larger than {_MAX_REQUEST_BYTES} bytes")
    return content


def _call_error(response: Any) -> FareboxAPIError:
    """Why a call failed: the platform's own refusal, or what the model said."""
    model_status = response.headers.get("ms-azureml-model-error-statuscode")
    if model_status is None:
        try:
            known = error_of(response.status_code, response.json(), response.headers)
        except ValueError:
            known = None
        if known is not None:
            return known
    said = response.text[:_SHOWN_CHARS]
    status = f"the model answered {model_status}" if model_status else f"HTTP {response.status_code}"
    return FareboxAPIError(
        response.status_code,
        "model_error" if model_status else "call_failed",
        f"{status}: {said}" if said else status,
        request_id=response.headers.get("x-request-id"),
    )
