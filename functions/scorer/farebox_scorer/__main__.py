"""`python -m farebox_scorer --entry-script score.py --port 5001`: serves a scoring script, or an MLflow model.

Environment: AZUREML_ENTRY_SCRIPT, AZUREML_MODEL_DIR, AML_APP_ROOT, WORKER_COUNT, SCORING_TIMEOUT_MS, AZUREML_LOG_LEVEL,
AML_CORS_ORIGINS. Exit status: 3 the script cannot be imported, 4 it lacks `init` or `run`, 5 `init` failed; the last
line on standard error says so with the code that a deployment shows.
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

from farebox_scorer import api
from farebox_scorer.script import ScriptError, UserScript

MAX_BODY = 100 * 1024 * 1024


def main():
    """See the module."""
    options = _parser().parse_args()
    logging.basicConfig(level=os.environ.get("AZUREML_LOG_LEVEL", "INFO").upper(), stream=sys.stdout)
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
    parser.add_argument("--worker-count", type=int, default=int(environ.get("WORKER_COUNT", "1")))
    parser.add_argument(
        "--access-control-allow-origins", default=environ.get("AML_CORS_ORIGINS", ""), metavar="LIST"
    )
    return parser


def _serve(options):
    api.install()
    if options.model_dir:
        os.environ["AZUREML_MODEL_DIR"] = options.model_dir
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
    _listen(options, script)
    return 0


def _script(options):
    if options.mlflow_model:
        from farebox_scorer.mlflow_model import MlflowModel

        return MlflowModel(options.mlflow_model)
    return UserScript(options.entry_script)


def _listen(options, script):
    from farebox_scorer.server import Server

    sock = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if "FAREBOX_SCORER_WORKER" in os.environ:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((options.host, options.port))
    root = os.environ.get("AML_APP_ROOT") or os.path.dirname(os.path.abspath(options.entry_script or "."))
    origins = [each.strip() for each in options.access_control_allow_origins.split(",") if each.strip()]
    timeout_s = int(os.environ.get("SCORING_TIMEOUT_MS", "3600000")) / 1000
    server = Server(script, root, origins=origins, timeout_s=timeout_s, max_body=MAX_BODY)
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
    workers = [subprocess.Popen(command, env=environ) for _ in range(options.worker_count)]
    stopping = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(1))
    status = 0
    while not stopping and not status:
        time.sleep(0.2)
        for index, worker in enumerate(workers):
            code = worker.poll()
            if code in (3, 4, 5):
                status = code
            elif code is not None and not stopping:
                workers[index] = subprocess.Popen(command, env=environ)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait()
    return status


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
