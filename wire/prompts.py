"""What went in, as a tokenizer takes it: messages for the chat template, single texts, or pairs of texts.

OpenAI's Responses and Anthropic's Messages become the chat messages that vLLM makes of them too.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from wire.openai import Operation

MAX_BYTES = 256 * 1024  # of a request that is kept while its answer streams
MAX_TEXTS = 2048  # OpenAI's bound on the inputs of one call
TEMPLATE_TOKENS = 512  # at most, that a chat template adds: the same as in the hold (gateway/estimate.py)
_SPECIAL_TOKENS = 8  # at most, around a text
_PASSED_ON = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
_TEXT_PARTS = ("text", "input_text", "output_text")

_anything = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()
_Json = dict[str, Any]


class Prompt(msgspec.Struct, frozen=True):
    """One call's input. Only one of `messages`, `texts` and `pairs` is used."""

    messages: list[_Json] = []
    options: _Json = {}  # of the chat template: tools, chat_template_kwargs and so on
    texts: list[str] = []  # each is tokenized with the model's own special tokens around it
    pairs: list[tuple[str, str]] = []
    ids: int = 0  # tokens that came as token ids: counted already
    special_tokens: bool = True

    def most_tokens(self) -> int:
        """No tokenizer with byte fallback makes more of it; a higher count is wrong."""
        if self.messages:
            return len(_encoder.encode((self.messages, self.options))) + TEMPLATE_TOKENS
        texts = [*self.texts, *(text for pair in self.pairs for text in pair)]
        return self.ids + sum(map(most_tokens_of_text, texts))

    @property
    def asks(self) -> int:
        """How many texts there are to tokenize."""
        return bool(self.messages) + len(self.texts) + 2 * len(self.pairs)


class _Uncountable(Exception):
    """Pictures and sound, or members that are not what they should be."""


def read_prompt(operation: Operation, members: Mapping[str, Raw]) -> Prompt | None:
    """The input of a call, None when no tokenizer can count it: it holds pictures or sound, say."""
    try:
        return _read(operation, members)
    except (_Uncountable, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _read(operation: Operation, members: Mapping[str, Raw]) -> Prompt:
    if operation == "responses":
        return _responses_prompt(members)
    if operation == "messages":
        return _anthropic_prompt(members)
    if operation in ("rerank", "score"):
        return Prompt(pairs=_pairs(members))
    if operation == "chat.completions" or (operation == "embeddings" and "messages" in members):
        # A template of the caller's own is the engine's to judge.
        if _member(members, "chat_template") is not None:
            raise _Uncountable
        options = {name: value for name in _PASSED_ON if (value := _member(members, name)) is not None}
        return Prompt([_message(each) for each in _list(_member(members, "messages"))], options)
    special = _member(members, "add_special_tokens")
    return _texts(_member(members, "prompt" if operation == "completions" else "input"), special is not False)


def _texts(value: object, special_tokens: bool) -> Prompt:
    if isinstance(value, str):
        return Prompt(texts=[value], special_tokens=special_tokens)
    items = _list(value)
    if items and isinstance(items[0], int):
        items = [items]
    texts = [item for item in items if isinstance(item, str)]
    lists = [item for item in items if isinstance(item, list)]
    if not items or len(texts) + len(lists) < len(items) or len(texts) > MAX_TEXTS:
        raise _Uncountable
    return Prompt(texts=texts, ids=sum(len(ids) for ids in lists), special_tokens=special_tokens)


def _pairs(members: Mapping[str, Raw]) -> list[tuple[str, str]]:
    firsts = _some(members, "query", "text_1", "queries", "data_1")
    seconds = _some(members, "documents", "text_2", "items", "data_2")
    if len(firsts) == 1:
        firsts *= len(seconds)
    if not seconds or len(firsts) != len(seconds) or len(seconds) > MAX_TEXTS:
        raise _Uncountable
    return list(zip(firsts, seconds, strict=True))


def _some(members: Mapping[str, Raw], *names: str) -> list[str]:
    value = next((found for name in names if (found := _member(members, name)) is not None), None)
    found = [item.get("text") if isinstance(item, dict) else item for item in _as_list(value)]
    if not all(isinstance(text, str) for text in found):
        raise _Uncountable
    return [str(text) for text in found]


def _message(value: object) -> _Json:
    if not isinstance(value, dict):
        raise _Uncountable
    content = value.get("content")
    for part in content if isinstance(content, list) else ():
        _text_part(part)
    return value


# -- the two other formats --


def _responses_prompt(members: Mapping[str, Raw]) -> Prompt:
    messages: list[_Json] = []
    instructions = _member(members, "instructions")
    if isinstance(instructions, str):
        messages.append({"role": "system", "content": instructions})
    given = _member(members, "input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        messages += [_item_message(item) for item in _list(given)]
    tools = [_function(tool, "parameters") for tool in _as_list(_member(members, "tools"))]
    return Prompt(messages, {"tools": tools} if tools else {})


def _item_message(item: object) -> _Json:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if not isinstance(item, dict) or kind not in ("message", "function_call", "function_call_output"):
        raise _Uncountable
    if kind == "function_call":
        return _call_message(item.get("call_id"), item.get("name"), item.get("arguments"))
    if kind == "function_call_output":
        output = item.get("output")
        text = output if isinstance(output, str) else _joined(output)
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": text}
    return {"role": item.get("role"), "content": _joined(item.get("content"))}


def _anthropic_prompt(members: Mapping[str, Raw]) -> Prompt:
    messages: list[_Json] = []
    system = _member(members, "system")
    if system is not None:
        messages.append({"role": "system", "content": _joined(system)})
    for message in _list(_member(members, "messages")):
        if not isinstance(message, dict):
            raise _Uncountable
        messages += _anthropic_messages(message)
    tools = [_function(tool, "input_schema") for tool in _as_list(_member(members, "tools"))]
    return Prompt(messages, {"tools": tools} if tools else {})


def _anthropic_messages(message: _Json) -> Iterable[_Json]:
    content = message.get("content")
    if isinstance(content, str):
        yield {"role": message.get("role"), "content": content}
        return
    texts = []
    for block in _list(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            arguments = _encoder.encode(block.get("input")).decode()
            yield _call_message(block.get("id"), block.get("name"), arguments)
        elif kind == "tool_result":
            text = _joined(block.get("content") or "")
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
        elif kind not in ("thinking", "redacted_thinking"):  # earlier thoughts are not given again
            texts.append(_text_part(block))
    if texts:
        yield {"role": message.get("role"), "content": "\n".join(texts)}


def _call_message(call_id: object, name: object, arguments: object) -> _Json:
    function = {"name": name, "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _function(tool: object, schema_name: str) -> _Json:
    if not isinstance(tool, dict) or tool.get("type") not in (None, "function", "custom"):
        raise _Uncountable
    function = {"name": tool.get("name"), "parameters": tool.get(schema_name) or {}}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


# -- small parts --


def _joined(content: object) -> str:
    return content if isinstance(content, str) else "\n".join(_text_part(part) for part in _list(content))


def _text_part(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _Uncountable


def _member(members: Mapping[str, Raw], name: str) -> Any:
    raw = members.get(name)
    return None if raw is None else _anything.decode(raw)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise _Uncountable
    return value


def _as_list(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def most_tokens_of_text(text: str) -> int:
    """No tokenizer with byte fallback makes more of it; a higher count is wrong."""
    return len(text.encode("utf-8", "surrogatepass")) + _SPECIAL_TOKENS
