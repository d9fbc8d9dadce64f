"""`python -m farebox_scorer --entry-script score.py --port 5001`: serves a scoring script, or an MLflow model.

Environment: AZUREML_ENTRY_SCRIPT, AZUREML_MODEL_DIR, AML_APP_ROOT, WORKER_COUNT, SCORING_TIMEOUT_MS, AZUREML_LOG_LEVEL,
AML_CORS_ORIGINS. Exit status: 3 the script cannot be imported, 4 it lacks `init` or `run`, 5 `init` failed, 6 it
cannot be kept from the network; the last line on standard error says so with the code that a deployment shows.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time

from farebox_scorer import api, egress, monitoring
from farebox_scorer.script import ScriptError, UserScript

MAX_BODY = 100 * 1024 * 1024
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LONG_LIVED_S, _PAUSE_S, _LONGEST_PAUSE_S = 10, 0.5, 30  # of workers that die, and pauses before others


def main():
    """See the module."""
    try:
        options = _parser().parse_args()
        options.timeout_ms = _whole("SCORING_TIMEOUT_MS", 3600000)
        logging.basicConfig(level=_log_level(), stream=sys.stdout)
    except ValueError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    if options.worker_count > 1:
        return _many(options)
    return _serve(options)


def _parser():
    environ = os.environ
    parser = argparse.ArgumentParser(prog="python -m farebox_scorer", description=__doc__.splitlines()[0])
    parser.add_argument("--entry-script", default=environ.get("AZUREML_ENTRY_SCRIPT", ""), metavar="FILE")
    parser.add_argument(
        "--mlflow-model", default="", metavar="DIR", help="an MLflow model instead of a script"
    )
    parser.add_argument("--model-dir", default=environ.get("AZUREML_MODEL_DIR", ""), metavar="DIR")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5001)
    parser.add_argument("--worker-count", type=int, default=_whole("WORKER_COUNT", 1))
    parser.add_argument("--no-egress", action="store_true", help="the script reaches no network")
    parser.add_argument(
        "--access-control-allow-origins", default=environ.get("AML_CORS_ORIGINS", ""), metavar="LIST"
    )
    return parser


def _whole(variable, default):
    """A whole number from the environment; ValueError says what is wrong with it."""
    text = os.environ.get(variable, "").strip() or str(default)
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**9:
        raise ValueError(f"{variable}: expected a whole number of one or more, got {text[:40]!r}")
    return int(text)


def _log_level():
    text = os.environ.get("AZUREML_LOG_LEVEL", "").strip().upper() or "INFO"
    if text not in _LEVELS:
        raise ValueError(f"AZUREML_LOG_LEVEL: expected one of {', '.join(_LEVELS)}, got {text[:40]!r}")
    return text


def _serve(options):
    api.install()
    monitoring.install()
    if options.model_dir:
        os.environ["AZUREML_MODEL_DIR"] = options.model_dir
    sock = _bound(options)
    if options.no_egress:
        try:
            egress.close()
        except OSError as error:
            egress.explain(error)
            return egress.NOT_POSSIBLE
    try:
        script = _script(options)
        script.init()
    except ScriptError as error:
        cause = error.__cause__
        if cause is not None:
            import traceback

            traceback.print_exception(type(cause), cause, cause.__traceback__)
        print(error, file=sys.stderr, flush=True)
        return error.status
    _listen(options, script, sock)
    monitoring.close()
    return 0


def _script(options):
    if options.mlflow_model:
        from farebox_scorer.mlflow_model import MlflowModel

        return MlflowModel(options.mlflow_model)
    return UserScript(options.entry_script)


def _bound(options):
    """The socket of the server; nobody is heard on it before the script is ready."""
    sock = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if "FAREBOX_SCORER_WORKER" in os.environ:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((options.host, options.port))
    return sock


def _listen(options, script, sock):
    from farebox_scorer.server import Server

    root = os.environ.get("AML_APP_ROOT") or os.path.dirname(os.path.abspath(options.entry_script or "."))
    origins = [each.strip() for each in options.access_control_allow_origins.split(",") if each.strip()]
    server = Server(script, root, origins=origins, timeout_s=options.timeout_ms / 1000, max_body=MAX_BODY)
    try:
        import uvloop
    except ImportError:
        asyncio.run(server.run(sock))
    else:
        uvloop.run(server.run(sock))


def _many(options):
    """Several processes on one port; one that dies is started again, but not one whose script cannot serve."""
    environ = {**os.environ, "FAREBOX_SCORER_WORKER": "1", "WORKER_COUNT": "1"}
    command = [sys.executable, "-m", "farebox_scorer", *_without_count(sys.argv[1:]), "--worker-count", "1"]
    workers = [_Worker(command, environ) for _ in range(options.worker_count)]
    stopping = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(1))
    status = 0
    while not stopping and not status:
        time.sleep(0.2)
        for worker in workers:
            code = worker.look()
            if code in (2, 3, 4, 5, egress.NOT_POSSIBLE):
                status = code
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.wait()
    return status


class _Worker:
    """A process that is started again when it dies; after a longer pause each time that it did not live long."""

    def __init__(self, command, environ):
        self._command, self._environ = command, environ
        self._deaths, self._again_at = 0, None
        self._start()

    def _start(self):
        self._began, self._again_at = time.monotonic(), None
        self.process = subprocess.Popen(self._command, env=self._environ)

    def look(self):
        """Its exit status when it has just died, else None."""
        now = time.monotonic()
        if self._again_at is not None:
            if now >= self._again_at:
                self._start()
            return None
        code = self.process.poll()
        if code is not None:
            self._deaths = 0 if now - self._began >= _LONG_LIVED_S else self._deaths + 1
            self._again_at = now + min(_PAUSE_S * 2 ** max(0, self._deaths - 1), _LONGEST_PAUSE_S)
        return code


def _without_count(arguments):
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--worker-count="):
            skip = False
        elif argument == "--worker-count":
            skip = True
        else:
            kept.append(argument)
    return kept


if __name__ == "__main__":
    sys.exit(main())
