"""A small tokenizer in a model's folder, made as `catalog/sample/build.py` makes one."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "one two three four five six seven",
    "tok0 tok1 tok2 tok3",
    "a question and an answer, again and again",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(folder: Path) -> Any:
    """Write tokenizer.json and tokenizer_config.json; returns the tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A",
        pair="<|start|> $A <|end|> $B <|end|>",
        special_tokens=[("<|start|>", 0), ("<|end|>", 1)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|start|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def tokens(tokenizer: Any, text: str, pair: str | None = None, *, special: bool = False) -> int:
    return len(tokenizer.encode(text, pair, add_special_tokens=special))


def rendered(*turns: tuple[str, str]) -> str:
    """What the template makes of messages, written out by hand."""
    return "<|start|>" + "".join(f"<|{role}|>{text}<|end|>" for role, text in turns) + "<|assistant|>"
