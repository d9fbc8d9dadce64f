"""The sample model: where it lies, whether it is built, and how it is built with an engine's Python.

The building itself is `build.py`, run as a child process: torch is in the engine's environment, not in ours.
"""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

MODEL_NAME = "farebox-sample"
SEED = 7
_HERE = Path(__file__).parent
_INPUTS = ("build.py", "corpus.py", "corpus.txt")


class SampleBuildError(Exception):
    """The sample model cannot be built. The message is for people and says what to do."""


def sample_model_dir(models_dir: Path) -> Path:
    """Where the sample model lies below the directory of models."""
    return models_dir / MODEL_NAME


def inputs_digest() -> dict[str, str]:
    """The SHA-256 of each file that decides what the model becomes."""
    return {name: hashlib.sha256((_HERE / name).read_bytes()).hexdigest() for name in _INPUTS}


def is_built(models_dir: Path) -> bool:
    """Whether the model is there, whole, and built from the present inputs and seed."""
    folder = sample_model_dir(models_dir)
    try:
        record = json.loads((folder / "model-build.json").read_text(encoding="utf-8"))
        return (
            record["inputs"] == inputs_digest()
            and record["seed"] == SEED
            and all((folder / name).is_file() for name in record["files"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def build(engine_python: Path, models_dir: Path, progress: Callable[[str, int, int], None]) -> Path:
    """Builds the model unless it is built; returns its directory. About a minute on two cores.

    `progress(step, done, total)` is called as the steps `tokenizer`, `train` and `write` go on. Raises
    SampleBuildError; then nothing half-made is left.
    """
    folder = sample_model_dir(models_dir)
    if is_built(models_dir):
        return folder
    # -B: the folder of the sources may not be ours to write to.
    command = [str(engine_python), "-B", str(_HERE / "build.py"), "--out", str(folder), "--seed", str(SEED)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            models_dir.mkdir(parents=True, exist_ok=True)
            status = _relay([*command, "--progress", "json"], errors.fileno(), progress)
        except OSError as error:
            raise SampleBuildError(f"The sample model cannot be built in {models_dir}: {error}") from error
        errors.seek(0)
        said = errors.read().strip()
    if status != 0:
        raise SampleBuildError(_explain(status, said))
    return folder


def _relay(command: list[str], errors: int, progress: Callable[[str, int, int], None]) -> int:
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                _relay_line(line, progress)
        except BaseException:
            child.terminate()
            raise
    return child.returncode


def _relay_line(line: str, progress: Callable[[str, int, int], None]) -> None:
    """Passes on a progress line; anything else that a library printed is not for us."""
    try:
        told = json.loads(line)
        step, done, total = str(told["step"]), int(told["done"]), int(told["total"])
    except (ValueError, KeyError, TypeError):
        return
    progress(step, done, total)


def _explain(status: int, said: str) -> str:
    if "No space left on device" in said:
        return "The disk is full: the sample model could not be written. Free some space and try again."
    if status == -9:
        return "The build of the sample model was killed, probably for want of memory (it needs 1.5 GB)."
    last = "\n  ".join(said.splitlines()[-8:])
    return (
        f"The sample model could not be built (status {status}):\n  {last}\n"
        "If the engine is at fault, check it: farebox engine check"
    )
