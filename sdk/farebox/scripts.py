"""Looks at a scoring script before it is sent: whether the functions that the server will call are there."""

import ast
from pathlib import Path
from typing import Any

from farebox.errors import FareboxConfigError

_MAX_BYTES = 1024 * 1024
_ADVICE = "; --skip-script-validation sends it as it is"


class ScriptError(FareboxConfigError):
    """A script that cannot work; the message names the file and the line."""


def check_script(document: dict[str, Any]) -> None:
    """ScriptError when the document's script has no `init` or `run`, or a `run` that cannot be called (R4.19, R4.14).

    Nothing of it is executed. A script that is not on this machine is left to the server.
    """
    code = document.get("code_configuration")
    if not isinstance(code, dict):
        return
    folder, script = code.get("code"), code.get("scoring_script")
    if not isinstance(folder, str) or not isinstance(script, str):
        return
    path = Path(folder) / script
    if not path.is_file():
        return
    with open(path, "rb") as file:
        source = file.read(_MAX_BYTES)
    try:
        tree = ast.parse(source, str(path))
    except SyntaxError as error:
        raise ScriptError(f"{path}, line {error.lineno}: not Python: {error.msg}{_ADVICE}") from None
    except ValueError as error:
        raise ScriptError(f"{path}: not Python: {error}{_ADVICE}") from None
    defined = _defined(tree)
    for name, when in (("init", "once when it starts"), ("run", "for each call")):
        if name not in defined:
            raise ScriptError(f"{path}: defines no function {name}(), which is called {when}{_ADVICE}")
    run = defined["run"]
    if isinstance(run, ast.FunctionDef | ast.AsyncFunctionDef):
        _check_run(run, path)


def _defined(tree: ast.Module) -> dict[str, ast.AST | None]:
    """Names that the module has at its top level; of those that come from elsewhere nothing more is known."""
    found: dict[str, ast.AST | None] = {}
    for node in ast.walk(tree) if _has_star_import(tree) else tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found |= {"init": None, "run": None}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name): None for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: None for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.If | ast.Try | ast.With):
            found |= _defined(
                ast.Module(
                    body=[each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt)],
                    type_ignores=[],
                )
            )
    return found


def _has_star_import(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        for node in tree.body
    )


def _check_run(run: ast.FunctionDef | ast.AsyncFunctionDef, path: Path) -> None:
    where, given = f"{path}, line {run.lineno}", run.args
    if given.posonlyargs:
        raise ScriptError(f"{where}: run() has positional-only parameters; leave out the '/'{_ADVICE}")
    if given.vararg or given.kwarg:
        star = f"*{given.vararg.arg}" if given.vararg else f"**{given.kwarg.arg}" if given.kwarg else ""
        raise ScriptError(f"{where}: run() has {star}; name each parameter{_ADVICE}")
    if not [each for each in (*given.args, *given.kwonlyargs) if each.arg != "request_headers"]:
        raise ScriptError(f"{where}: run() has no parameter for the call's input, e.g. run(data){_ADVICE}")
