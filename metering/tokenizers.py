"""Counts tokens with tokenizers on disk: the file that names the `tokenizers` and `jinja2` libraries.

Both are optional (`farebox-platform[tokenizers]`); without them nothing is counted here. For the control process
only: loading one takes a second of a processor, in which the gateway would stand still.
"""

import json
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from wire.prompts import Prompt

MAX_LOADED = 8  # about 30 MB each for a vocabulary of 150,000
_MAX_FILE_BYTES = 64 * 1024 * 1024
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class _Loaded:
    changed_ns: int  # when the file was last written, as it was read
    tokenizer: Any
    template: Any  # a jinja2 template, None when the model has none
    names: dict[str, str]  # its special tokens, by their names in templates


class Tokenizers:
    """A few loaded tokenizers; the least recently used goes first. For several threads."""

    def __init__(self, max_loaded: int = MAX_LOADED) -> None:
        self._max_loaded = max_loaded
        self._loaded: OrderedDict[Path, _Loaded] = OrderedDict()
        self._lock = threading.Lock()

    def count(
        self, file: Path, prompt: Prompt | None, texts: list[str] | None
    ) -> tuple[int | None, int | None]:
        """Tokens of a prompt, and of generated texts together, by the tokenizer in `file` (a tokenizer.json).

        None for what was not given, or cannot be counted. Raises OSError or ValueError: the file cannot be used.
        """
        found = self._load(file)
        given = None if prompt is None else _count_prompt(found, prompt)
        said = None if texts is None else _count_texts(found.tokenizer, texts, special=False)
        return given, said

    def _load(self, file: Path) -> _Loaded:
        with self._lock:  # one is loaded at a time
            changed_ns = file.stat().st_mtime_ns
            found = self._loaded.pop(file, None)
            if found is None or found.changed_ns != changed_ns:
                found = _read(file, changed_ns)
            self._loaded[file] = found
            if len(self._loaded) > self._max_loaded:
                self._loaded.popitem(last=False)
            return found


def available() -> bool:
    """Whether the libraries are installed."""
    try:
        import jinja2
        import tokenizers
    except ImportError:
        return False
    return bool(jinja2 and tokenizers)


def _read(file: Path, changed_ns: int) -> _Loaded:
    # Its threads would take every core, and do not survive a fork, which starts model servers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    if file.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"the tokenizer is larger than {_MAX_FILE_BYTES} bytes")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _config(file.with_name("tokenizer_config.json"))
    names = {name: text for name in _SPECIAL_NAMES if (text := _special(config.get(name)))}
    return _Loaded(changed_ns, tokenizer, _template(file, config), names)


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file() or file.stat().st_size > _MAX_FILE_BYTES:
        return {}
    value = json.loads(file.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _special(value: object) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _count_texts(tokenizer: Any, texts: list[Any], *, special: bool) -> int:
    # In a batch the library lets other threads run meanwhile.
    return sum(len(found) for found in tokenizer.encode_batch(texts, add_special_tokens=special))


def _count_prompt(found: _Loaded, prompt: Prompt) -> int | None:
    if prompt.messages:
        if found.template is None:
            return None
        text = _render(found, prompt)
        return None if text is None else _count_texts(found.tokenizer, [text], special=False)
    texts = [*prompt.texts, *(tuple(pair) for pair in prompt.pairs)]
    return prompt.ids + _count_texts(found.tokenizer, texts, special=prompt.special_tokens)


# -- the chat template, as the usual libraries render it --


def _template(file: Path, config: dict[str, Any]) -> Any:
    own = file.with_name("chat_template.jinja")
    text = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
    if isinstance(text, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in text if isinstance(each, dict)}
        text = named.get("default")
    if not isinstance(text, str):
        return None
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(text)
    except TemplateSyntaxError:
        return None


def _render(found: _Loaded, prompt: Prompt) -> str | None:
    options = dict(prompt.options)
    more = options.pop("chat_template_kwargs", None)
    if options.pop("continue_final_message", None):
        return None  # the text would have to be cut where the last message ends
    values: dict[str, Any] = found.names | (more if isinstance(more, dict) else {})
    values |= {"add_generation_prompt": options.get("add_generation_prompt", True)}
    values |= {"tools": options.get("tools"), "messages": [_flat(message) for message in prompt.messages]}
    try:
        return str(found.template.render(values))
    except Exception:  # whatever a template makes of messages that it does not know
        return None


def _flat(message: dict[str, Any]) -> dict[str, Any]:
    """Contents in parts as one text, as the engine gives them to most templates."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [part if isinstance(part, str) else str(part.get("text", "")) for part in content]
    return message | {"content": "\n".join(parts)}


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)
