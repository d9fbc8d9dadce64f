"""Which tokenizer is whose, and counting with it: the control process's answer to a gateway that must count."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from catalog.model import ModelSpec
from catalog.sample import sample_model_dir
from catalog.store import find_model
from core.database import Database
from core.errors import Invalid, NotFound, Unavailable
from core.log import get_logger
from core.settings import Settings
from metering import tokenizers
from wire.prompts import Prompt

_log = get_logger(__name__)

MAX_BYTES = 32 * 1024 * 1024  # of a question
_FILE = "tokenizer.json"
_MAX_WAITING = 64
_THREADS = 2


class Question(msgspec.Struct, frozen=True):
    """What a gateway wants counted."""

    model: str
    prompt: Prompt | None = None
    texts: list[str] | None = None


class Answer(msgspec.Struct, frozen=True):
    """Tokens; None: not asked, or not to be counted."""

    prompt: int | None
    texts: int | None


class TokenCounter:
    """Counts in a few threads of its own. Nothing of the texts is kept, written or logged."""

    def __init__(self, find_file: Callable[[str], Path | None]) -> None:
        """`find_file` by model id: its tokenizer.json."""
        self._find_file = find_file
        self._tokenizers = tokenizers.Tokenizers()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokens")
        self._waiting = 0

    async def count(self, data: bytes) -> bytes:
        """The answer to an encoded question. NotFound: that model has no tokenizer here. Unavailable: too busy."""
        try:
            question = msgspec.json.decode(data, type=Question)
        except msgspec.DecodeError as error:
            raise Invalid(f"expected a question for tokens: {error}") from None
        if self._waiting >= _MAX_WAITING:
            raise Unavailable("Too many texts wait to be counted; try again.", retry_after_s=1)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return msgspec.json.encode(await loop.run_in_executor(self._threads, self._count, question))
        finally:
            self._waiting -= 1

    def _count(self, question: Question) -> Answer:
        file = self._find_file(question.model) if tokenizers.available() else None
        if file is None:
            raise NotFound(f"No tokenizer of {question.model} is here.")
        try:
            return Answer(*self._tokenizers.count(file, question.prompt, question.texts))
        except (OSError, ValueError) as error:
            # Only the kind: a message could hold some of the text.
            about = {"model": question.model, "file": str(file), "reason": type(error).__name__}
            _log.warning("a tokenizer cannot be used", extra=about)
            raise NotFound(f"The tokenizer of {question.model} cannot be used.") from None


def token_counter(settings: Settings, db: Database) -> TokenCounter:
    """For the models in the catalog."""

    def find_file(model_id: str) -> Path | None:
        with db.read() as connection:
            model = find_model(connection, model_id)
            if model is not None and model.spec.adapter is not None:
                model = find_model(connection, model.spec.adapter.base)
        return None if model is None else tokenizer_file(model.spec, settings)

    return TokenCounter(find_file)


def tokenizer_file(spec: ModelSpec, settings: Settings) -> Path | None:
    """The tokenizer.json of a model: where its entry says, else where its weights are. None: not on this machine."""
    named, source = spec.engine.tokenizer, spec.source
    if named.startswith("/"):
        path = Path(named)
        return _existing(path if path.name.endswith(".json") else path / _FILE)
    if named:
        return _in_hub_cache(settings.home, named, "main")
    if source is None:
        return None
    if source.builtin:
        return _existing(sample_model_dir(settings.models_path) / _FILE)
    return _in_hub_cache(settings.home, source.repository, source.revision)


def _in_hub_cache(home: Path, repository: str, revision: str) -> Path | None:
    """Where the engines (whose HF_HOME it is) keep what they fetched: `refs/main` names the commit."""
    folder = home / "cache" / "huggingface" / "hub" / f"models--{repository.replace('/', '--')}"
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision
    return _existing(folder / "snapshots" / commit / _FILE) if commit else None


def _existing(file: Path) -> Path | None:
    return file if file.is_file() else None
