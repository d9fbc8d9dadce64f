"""The user's script: loaded, its `init` run once, its `run` called in the way that it is written for.

Source: R4.13 to R4.15 of our reference (azureml-inference-server-http's `user_script` and `input_parsers`).
"""

import importlib.util
import inspect
import json
import os
import sys

from farebox_scorer import api

IMPORT_ERROR, NOT_FOUND, INIT_FAILED = 3, 4, 5


class ScriptError(Exception):
    """The script cannot serve: `status` ends the process, `code` is what the deployment shows."""

    def __init__(self, status, code, message):
        super().__init__(f"{code}: {message}")
        self.status = status


class BadInput(Exception):
    """The caller's fault; `status` 400 or 415."""

    def __init__(self, message, status=400):
        super().__init__(message)
        self.status = status


class Answer:
    """What goes back: body, status, headers; `failed` is told in a header of its own."""

    def __init__(self, body, status=200, headers=None, content_type="application/json", failed=False):
        self.body, self.status, self.headers, self.content_type = body, status, headers or {}, content_type
        self.failed = failed


class UserScript:
    """A scoring script with `init` and `run`."""

    def __init__(self, path):
        self.path = path
        module = _load(path)
        self._init, self._run = _function(module, "init", path), _function(module, "run", path)
        self._raw = getattr(self._run, api.RAW, False)
        self._schema = _schema_of(self._run)
        if self._raw and self._schema:
            raise ScriptError(
                NOT_FOUND,
                "UserScriptFunctionNotFound",
                "run is decorated with rawhttp and a schema; one only",
            )
        self._names, self._needed, self._wants_headers = _parameters(self._run, path)

    def init(self):
        """Once, before anything is served."""
        try:
            self._init()
        except BaseException as error:
            raise ScriptError(
                INIT_FAILED, "UserScriptInitFailed", f"init() raised {_shown(error)}"
            ) from error

    def run(self, method, path, query, headers, body):
        """One call. BadInput, or whatever the script raises."""
        more = {"request_headers": dict(headers)} if self._wants_headers else {}
        if self._raw:
            result = self._run(api.AMLRequest(method, path, query, headers, body), **more)
        elif self._schema:
            result = self._run(**self._arguments(method, query, headers, body), **more)
        else:
            result = self._run(_text(method, query, body), **more)
        return answer_of(result)

    def schemas(self):
        """Of input and output, for Swagger; None: there are none."""
        return self._schema

    def _arguments(self, method, query, headers, body):
        if method == "GET":
            given = _query_object(query)
        else:
            if "json" not in headers.get("content-type", "application/json"):
                raise BadInput("Expects Content-Type to be application/json", 415)
            given = parse_json(body)
        if not isinstance(given, dict):
            raise BadInput("Expects a JSON object with one member for each parameter of run()")
        by_lower = {name.lower(): value for name, value in given.items()}
        missing = [name for name in self._needed if name.lower() not in by_lower]
        if missing:
            raise BadInput(f"The request lacks the parameter {', '.join(missing)}")
        return {name: by_lower[name.lower()] for name in self._names if name.lower() in by_lower}


def answer_of(result):
    """What a script returned as an answer."""
    if isinstance(result, api.AMLResponse):
        return _own_answer(result)
    return Answer(_json(result))


def _own_answer(result):
    message, status, failed = result.message, result.status_code, result.run_function_failed
    kind = next((v for k, v in result.headers.items() if k.lower() == "content-type"), "")
    headers = {k: v for k, v in result.headers.items() if k.lower() != "content-type"}
    if isinstance(message, bytes):
        return Answer(message, status, headers, kind or "text/html; charset=utf-8", failed)
    if isinstance(message, str) and not result.json_str:
        return Answer(message.encode(), status, headers, kind or "text/html; charset=utf-8", failed)
    body = {} if message is None else message
    return Answer(_json(body), status, headers, kind or "application/json", failed)


def parse_json(body):
    """BadInput: it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"The request body is not valid JSON: {error}") from None


def _json(value):
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"what run() returned cannot be written as JSON: {error}") from error


def _text(method, query, body):
    if method == "GET":
        return json.dumps(_query_object(query))
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(
            "The request body is not UTF-8 text; a script that takes bytes uses @rawhttp"
        ) from None


def _query_object(query):
    """`a=1&b=x&b=2` as `{"a": 1, "b": ["x", 2]}`."""
    values = api.Values(query)
    found = {}
    for name in values:
        each = [_loose_json(value) for value in values.getlist(name)]
        found[name] = each if len(each) > 1 else each[0]
    return found


def _loose_json(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _load(path):
    if not os.path.isfile(path):
        raise ScriptError(IMPORT_ERROR, "UserScriptImportError", f"there is no file {path}")
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location("user_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_script"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise ScriptError(
            IMPORT_ERROR, "UserScriptImportError", f"importing {path} raised {_shown(error)}"
        ) from error
    return module


def _function(module, name, path):
    found = getattr(module, name, None)
    if not callable(found):
        raise ScriptError(NOT_FOUND, "UserScriptFunctionNotFound", f"{path} has no function {name}()")
    return found


def _parameters(run, path):
    names, needed, wants_headers = [], [], False
    for name, parameter in inspect.signature(run).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ScriptError(
                NOT_FOUND,
                "UserScriptFunctionNotFound",
                f"{path}: run() may not have {parameter}; name each parameter",
            )
        if name == "request_headers":
            wants_headers = True
            continue
        names.append(name)
        if parameter.default is parameter.empty:
            needed.append(name)
    if not names:
        raise ScriptError(
            NOT_FOUND, "UserScriptFunctionNotFound", f"{path}: run() needs a parameter for its input"
        )
    return names, needed, wants_headers


def _schema_of(run):
    try:
        from inference_schema import schema_util
    except ImportError:
        return None
    if not schema_util.is_schema_decorated(run):
        return None
    return schema_util.get_input_schema(run), schema_util.get_output_schema(run)


def _shown(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
