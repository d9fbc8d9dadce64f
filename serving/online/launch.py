"""What starts one instance of an online deployment: the command, its environment, and what must be made before."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection

from catalog.model import ModelSpec
from catalog.store import get_model
from core.database import Database
from core.errors import Invalid
from core.settings import Settings
from serving.launch import Launch, Launcher
from serving.online.collecting import script_collections
from serving.online.model import OnlineDeployment
from serving.online.opened import OpenedCopies
from serving.online.spec import DeploymentSpec
from serving.store import endpoint_names

Report = Callable[[str], None]
SCORER = Path(__file__).parents[2] / "functions" / "scorer"
_CONFINED = SCORER / "farebox_scorer" / "confined.py"
# Of the platform's own environment a user's process gets these only: the rest may hold secrets.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class Environments(Protocol):
    """Makes the virtual environments that scoring scripts run in."""

    def python(self, environment: Mapping[str, object] | None, model: Path | None) -> Path:
        """Where the interpreter is, or will be. Quick, without side effects."""
        ...

    def build(self, environment: Mapping[str, object] | None, model: Path | None, report: Report) -> None:
        """Build it unless it is there. FareboxError (code `ImageBuildFailure`) says why it cannot be."""
        ...


class OnlineLauncher:
    """Turns a deployment into the command of one instance."""

    def __init__(
        self,
        db: Database,
        catalog: Launcher,
        environments: Environments,
        settings: Settings,
        opened: OpenedCopies | None = None,
    ) -> None:
        """`catalog` starts models of the catalog; `opened` decrypts copies, where they are stored encrypted."""
        self._db, self._catalog, self._environments = db, catalog, environments
        self._settings, self._opened = settings, opened

    def __call__(self, deployment: OnlineDeployment, port: int) -> Launch:
        """The command on that port. FareboxError: it cannot be started at all."""
        launch = self._with_copies(deployment, port)
        return replace(launch, low_priority=deployment.spec.low_priority)

    def _with_copies(self, deployment: OnlineDeployment, port: int) -> Launch:
        if self._opened is None:
            return self._launch(deployment, port)
        opened, stored = self._opened, deployment.spec
        if stored.kind == "mlflow":
            opened.describe(stored.model_path)
        launch = self._launch(replace(deployment, spec=opened.moved(stored)), port)

        def prepare(report: Report) -> None:
            opened.open(stored, report)
            launch.prepare(report)

        return replace(launch, prepare=prepare)

    def _launch(self, deployment: OnlineDeployment, port: int) -> Launch:
        spec = deployment.spec
        if spec.kind in ("script", "mlflow"):
            return self._scorer(deployment, port)
        launch = self._catalog_model(spec, port) if spec.kind == "catalog" else _own_server(spec, port)
        return _confined(launch, port) if spec.egress_public_network_access == "disabled" else launch

    def _catalog_model(self, spec: DeploymentSpec, port: int) -> Launch:
        with self._db.read() as connection:
            model = catalog_model(connection, spec)
        launch = self._catalog(model, port)
        return replace(launch, env={**launch.env, **spec.environment_variables})

    def _scorer(self, deployment: OnlineDeployment, port: int) -> Launch:
        spec = deployment.spec
        model = Path(spec.model_path) if spec.model_path else None
        python = self._environments.python(spec.environment, model if spec.kind == "mlflow" else None)
        if spec.kind == "mlflow":
            what = ["--mlflow-model", spec.model_path]
        else:
            what = ["--entry-script", str(Path(spec.code_path) / spec.scoring_script)]
            what += ["--model-dir", spec.model_dir] if spec.model_path else []
        what += ["--no-egress"] if spec.egress_public_network_access == "disabled" else []

        def prepare(report: Report) -> None:
            self._environments.build(spec.environment, model if spec.kind == "mlflow" else None, report)

        return Launch(
            argv=(str(python), "-m", "farebox_scorer", *what, "--host", "127.0.0.1", "--port", str(port)),
            env=_environment(spec, port)
            | {"PYTHONPATH": str(SCORER), "PYTHONUNBUFFERED": "1"}
            | self._collecting(deployment),
            cwd=Path(spec.code_path) if spec.code_path else None,
            health_path="/",
            needed_bytes=spec.resources.requests.memory_bytes,
            prepare=prepare,
        )

    def _collecting(self, deployment: OnlineDeployment) -> dict[str, str]:
        """What the script's own collectors keep, and where."""
        wanted = script_collections(deployment.spec.data_collector)
        if not wanted:
            return {}
        with self._db.read() as connection:
            endpoint = endpoint_names(connection, [deployment.endpoint_id])[deployment.endpoint_id]
        folder = self._settings.collected_path / endpoint / deployment.name
        where = {
            "folder": str(folder),
            "source": f"/endpoints/{endpoint}/deployments/{deployment.name}",
            "max_bytes": self._settings.collected_max_bytes,
        }
        if self._settings.customer_key_file:
            where["keyring"] = str(self._settings.keyring_path)
        return {"FAREBOX_COLLECT": json.dumps(wanted | where)}


def catalog_model(connection: Connection, spec: DeploymentSpec) -> ModelSpec:
    """The model of the catalog that a deployment serves. NotFound, Invalid."""
    model = get_model(connection, spec.model).spec
    if model.external:
        raise Invalid(
            f"model: {model.id} is served by an attached server; an online deployment starts its own. "
            "Use a serverless endpoint",
            param="model",
        )
    if model.adapter is not None:
        raise Invalid(
            f"model: {model.id} is a fine-tune, served by the pool of {model.adapter.base}; use a serverless "
            "endpoint",
            param="model",
        )
    return model


def _own_server(spec: DeploymentSpec, port: int) -> Launch:
    """The user's own HTTP server."""
    argv = tuple(part.replace("{port}", str(port)) for part in spec.command)
    if not argv:
        raise Invalid(
            "command: an image is for a cluster; on one machine say how the server is started, e.g. "
            'command: ["python", "server.py", "--port", "{port}"]',
            param="command",
        )
    return Launch(
        argv=argv,
        env=_environment(spec, port),
        cwd=Path(spec.code_path) if spec.code_path else None,
        health_path=spec.routes.readiness.path,
        needed_bytes=spec.resources.requests.memory_bytes,
    )


def _confined(launch: Launch, port: int) -> Launch:
    """The same server in a network of its own."""
    return replace(launch, argv=(sys.executable, str(_CONFINED), "--port", str(port), "--", *launch.argv))


def _environment(spec: DeploymentSpec, port: int) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    ours = {"PORT": str(port)}
    if spec.model_path:
        # What the model's folder or file lies in: scripts join its name to it.
        ours["AZUREML_MODEL_DIR"] = spec.model_dir
    if spec.code_path:
        ours["AML_APP_ROOT"] = spec.code_path
    if spec.scoring_script:
        ours["AZUREML_ENTRY_SCRIPT"] = spec.scoring_script
    return passed | dict(spec.environment_variables) | ours
