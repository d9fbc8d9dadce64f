"""What scripts import from Azure's packages: `rawhttp`, `AMLRequest`, `AMLResponse`, put under the names they use.

Source: azureml-inference-server-http's `api` package and azureml-contrib-services, as documented.
"""

import json
import sys
import types
from urllib.parse import parse_qs

RAW = "__farebox_raw__"


class Values(dict):
    """Query parameters: the first value of each, `getlist` for all."""

    def __init__(self, text):
        self._all = parse_qs(text, keep_blank_values=True)
        super().__init__({name: values[0] for name, values in self._all.items()})

    def getlist(self, name):
        return list(self._all.get(name, ()))


class Headers(dict):
    """Names in any case."""

    def __init__(self, pairs):
        super().__init__()
        self._lower = {}
        for name, value in pairs:
            self[name] = value
            self._lower[name.lower()] = value

    def get(self, name, default=None):
        return self._lower.get(name.lower(), default)

    def __getitem__(self, name):
        return self._lower[name.lower()]

    def __contains__(self, name):
        return name.lower() in self._lower


class AMLRequest:
    """The request as a script in raw mode gets it."""

    def __init__(self, method, path, query, headers, body):
        self.method, self.path, self.query_string = method, path, query.encode("latin-1")
        self.headers = headers
        self.args = Values(query)
        self.data = body

    @property
    def content_type(self):
        return self.headers.get("content-type", "")

    @property
    def form(self):
        return Values(self.data.decode("utf-8", "replace"))

    def get_data(self, cache=True, as_text=False):
        return self.data.decode("utf-8") if as_text else self.data

    def get_json(self, force=False, silent=False):
        try:
            return json.loads(self.data)
        except ValueError:
            if silent:
                return None
            raise

    @property
    def json(self):
        return self.get_json()


class AMLResponse:
    """An answer with a status and headers of the script's own. `message`: text, bytes, or anything JSON can hold."""

    def __init__(
        self, message, status_code, response_headers=None, json_str=False, run_function_failed=False
    ):
        self.message, self.status_code = message, int(status_code)
        self.headers = dict(response_headers or {})
        self.json_str = json_str
        self.run_function_failed = bool(run_function_failed) or self.status_code >= 500


def rawhttp(function):
    """Marks a `run` that takes the whole request."""
    setattr(function, RAW, True)
    return function


def install():
    """Make the imports of scripts find these."""
    for package, modules in (
        ("azureml.contrib.services", ("aml_request", "aml_response")),
        ("azureml_inference_server_http.api", ("aml_request", "aml_response")),
    ):
        parts = package.split(".")
        for length in range(1, len(parts) + 1):
            _package(".".join(parts[:length]))
        for name in modules:
            module = types.ModuleType(f"{package}.{name}")
            module.AMLRequest, module.AMLResponse, module.rawhttp = AMLRequest, AMLResponse, rawhttp
            sys.modules[module.__name__] = module
            setattr(sys.modules[package], name, module)


def _package(name):
    if name in sys.modules:
        return
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
