"""An MLflow model served without a script (R4.20): `input_data` in, predictions out."""

from farebox_scorer.script import INIT_FAILED, BadInput, ScriptError, answer_of, parse_json

_SPLIT = {"columns", "index", "data"}


class MlflowModel:
    """The same face as `UserScript`."""

    def __init__(self, folder):
        self._folder = folder
        self._model = None

    def init(self):
        """Load it."""
        try:
            from mlflow import pyfunc

            self._model = pyfunc.load_model(self._folder)
        except BaseException as error:
            shown = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            raise ScriptError(
                INIT_FAILED, "UserScriptInitFailed", f"loading the model raised {shown}"
            ) from error

    def run(self, method, path, query, headers, body):
        """One call. BadInput for what the model does not take."""
        if method == "GET":
            raise BadInput("an MLflow model takes a POST with `input_data`")
        document = parse_json(body)
        if not isinstance(document, dict) or "input_data" not in document:
            raise BadInput('expected a JSON object with the member "input_data"')
        given = _read(document["input_data"])
        parameters = document.get("params")
        try:
            found = (
                self._model.predict(given, params=parameters) if parameters else self._model.predict(given)
            )
        except Exception as error:
            if type(error).__name__ == "MlflowException":  # the signature is not kept
                raise BadInput(f"the input does not fit the model's signature: {str(error)[:1000]}") from None
            raise
        return answer_of(_plain(found))

    def schemas(self):
        """None: Swagger shows `input_data` only."""
        return


def _read(value):
    import numpy
    import pandas

    if isinstance(value, dict) and "data" in value and set(value) <= _SPLIT:
        try:
            return pandas.DataFrame(value["data"], columns=value.get("columns"), index=value.get("index"))
        except (ValueError, TypeError) as error:
            raise BadInput(f"input_data: {error}") from None
    if isinstance(value, dict):
        return {name: numpy.array(each) for name, each in value.items()}
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            raise BadInput(
                'input_data: records are not taken; write {"columns": […], "data": [[…]]}, or a list of numbers'
            )
        return numpy.array(value)
    raise BadInput("input_data: expected split columns and data, a list, or named lists")


def _plain(value):
    for name, how in (("to_dict", {"orient": "records"}), ("tolist", {})):
        convert = getattr(value, name, None)
        if convert is not None:
            try:
                return convert(**how)
            except TypeError:
                continue
    return value
