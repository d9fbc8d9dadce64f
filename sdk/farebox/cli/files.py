"""Reading and writing what `-f` names."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from farebox.cli.framework import is_terminal, note

_FILE_MAX_BYTES = 1024 * 1024


def read_file(path: str) -> bytes:
    """The file's bytes, `-` for stdin. A usage error says what is wrong with it."""
    if path == "-":
        content = sys.stdin.buffer.read(_FILE_MAX_BYTES + 1)
    else:
        try:
            if Path(path).is_dir():
                raise click.UsageError(f"-f {path}: is a directory; name one file in it")
            with open(path, "rb") as file:
                content = file.read(_FILE_MAX_BYTES + 1)
        except FileNotFoundError:
            raise click.UsageError(f"-f {path}: there is no such file{_neighbour(path)}") from None
        except (OSError, ValueError) as error:
            raise click.UsageError(
                f"-f {path}: cannot be read ({getattr(error, 'strerror', None) or error})"
            ) from None
    name = "standard input" if path == "-" else path
    if len(content) > _FILE_MAX_BYTES:
        raise click.UsageError(
            f"-f {name}: is larger than {_FILE_MAX_BYTES // 1024} KiB; is it the right file?"
        )
    if not content.strip():
        raise click.UsageError(f"-f {name}: is empty")
    return content


def read_mapping(path: str) -> dict[str, Any]:
    """The YAML (or JSON) mapping in the file."""
    import yaml

    content = read_file(path)
    name = "standard input" if path == "-" else path
    try:
        value = yaml.safe_load(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise click.UsageError(
            f"-f {name}{where}: not YAML: {error.problem or error.context or error}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise click.UsageError(f"-f {name}: not YAML: {error}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise click.UsageError(
            f"-f {name}: expected fields such as `name: my-endpoint`, got {type(value).__name__}"
        )
    return value


def _neighbour(path: str) -> str:
    from difflib import get_close_matches

    here = Path(path)
    try:
        # Bounded: the folder may be huge.
        names = [entry.name for entry, _ in zip(here.parent.iterdir(), range(1000), strict=False)]
    except OSError:
        return ""
    close = get_close_matches(here.name, names, n=1)
    return f"; did you mean {here.parent / close[0]}?" if close else ""


def write_stream(path: str, pieces: Iterable[bytes], option: str) -> None:
    """To a file, whole or not at all, with the bytes so far on a terminal; `-` is stdout."""
    if path == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        return
    temporary, size, shown = f"{path}.part", 0, is_terminal(sys.stderr)
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                file.write(piece)
                size += len(piece)
                if shown:
                    click.echo(f"\r{size >> 20} MiB", err=True, nl=False)
        os.replace(temporary, path)
    except OSError as error:
        raise click.UsageError(f"{option} {path}: cannot be written ({error.strerror or error})") from None
    finally:
        if shown:
            click.echo("\r", err=True, nl=False)
        Path(temporary).unlink(missing_ok=True)
    note(f"Written: {path} ({size} bytes)")


def write_bytes(path: str | None, content: bytes) -> None:
    """To a file, whole or not at all; or to stdout, which must then not be a terminal for what is no text."""
    if path is None or path == "-":
        if is_terminal(sys.stdout) and b"\x00" in content[:1024] + content[-1024:]:
            raise click.UsageError("this is no text; name a file with -f")
        sys.stdout.buffer.write(content)
        return
    temporary = f"{path}.part"
    try:
        Path(temporary).write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise click.UsageError(f"-f {path}: cannot be written ({error.strerror or error})") from None
    note(f"Written: {path} ({len(content)} bytes)")
