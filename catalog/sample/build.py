"""Builds the sample model: a small Llama with its own tokenizer, trained here from text in the repository.

Run it with the engine's Python, which has torch, transformers and tokenizers; it imports nothing of Farebox
but `corpus.py` beside it:

    {engine python} build.py --out DIR --seed 7 [--progress json]

The same seed, versions and kind of processor give the same bytes: one fixed thread count, deterministic
algorithms, data in an order drawn from the seed, a fixed number of steps instead of a time limit, sorted JSON
and no time stamps. DIR appears whole or not at all.
"""

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same bytes with and without a GPU: it is small, the CPU will do
# Idle threads sleep instead of spinning: on a machine that does anything else at the same time the training is
# then four times as fast, and alone it is hardly slower.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
warnings.filterwarnings("ignore")

import corpus  # noqa: E402  (the environment above must be set before the libraries are loaded)

THREADS = 2
CONTEXT_LENGTH = 4096
VOCABULARY = 2048
SORTED_TOGETHER = 112  # rows
ROWS_PER_STEP = 14
STEPS = 320
PEAK_RATE = 5e-3
NS_STEPS = 3  # of Muon's orthogonalization: 3 are nearly as good as the usual 5, in 60 % of the time
START, END, USER, ASSISTANT, SYSTEM = "<|start|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "Be brief.",
    "You are the assistant of Farebox.",
    "Answer politely.",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + ('system' if message.role == 'developer' else message.role) + '|>' }}"
    "{{ message.content or '' }}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
Row = tuple[list[int], list[int]]  # tokens, labels
INPUTS = ("build.py", "corpus.py", "corpus.txt")


class Progress:
    """Tells on stdout (one JSON object per line) or on stderr (for people) how far a step is."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def __call__(self, step: str, done: int, total: int) -> None:
        if self.as_json:
            print(json.dumps({"step": step, "done": done, "total": total}), flush=True)
        else:
            print(f"{step}: {done}/{total}", file=sys.stderr, flush=True)


def train_tokenizer(texts: list[str]):
    """A byte-level BPE tokenizer: any text can be encoded, however far from the corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def batches_of_one_pass(tokenizer, pairs, texts: list[str], draw: random.Random) -> list[list[Row]]:
    """One pass over the data: batches of rows (tokens, labels), one conversation to a row.

    Rows of like length share a batch, so that little is padding. A few have an earlier turn before the question, so
    that the model learns to answer the last one. Only answers and plain texts are learned (label -100 = not
    learned): the questions are the callers' business.
    """
    rows = [_row(tokenizer, pairs, pair, draw) for pair in pairs]
    start = tokenizer.token_to_id(START)
    for text in texts:
        ids = tokenizer.encode(text + END).ids
        rows.append(([start, *ids], [-100, *ids]))
    draw.shuffle(rows)
    batches = []
    for first in range(0, len(rows), SORTED_TOGETHER):
        group = sorted(rows[first : first + SORTED_TOGETHER], key=lambda row: len(row[0]))
        batches += [group[at : at + ROWS_PER_STEP] for at in range(0, len(group), ROWS_PER_STEP)]
    draw.shuffle(batches)
    return batches


def _row(tokenizer, pairs, pair, draw: random.Random) -> Row:
    tokens, labels = [tokenizer.token_to_id(START)], [-100]
    if draw.random() < 0.1:
        system = tokenizer.encode(f"{SYSTEM}{draw.choice(SYSTEM_TEXTS)}{END}").ids
        tokens, labels = tokens + system, labels + [-100] * len(system)
    if draw.random() < 0.1:
        earlier, _ = _segment(tokenizer, draw.choice(pairs), draw)
        tokens, labels = tokens + earlier, labels + [-100] * len(earlier)
    ids, wanted = _segment(tokenizer, pair, draw)
    return tokens + ids, labels + wanted


def _segment(tokenizer, pair, draw: random.Random) -> Row:
    question = corpus.rephrase(pair.question, draw)
    asked = tokenizer.encode(f"{USER}{question}{END}{ASSISTANT}").ids
    answer = tokenizer.encode(pair.answer + END).ids
    return asked + answer, [-100] * len(asked) + answer


def new_model(seed: int):
    """An untrained model of about 2.5 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=640, num_hidden_layers=4,
        num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.04,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rate_at(step: int, steps: int) -> float:
    """The learning rate: a short climb, then a cosine down to a fiftieth of the peak."""
    if step < 20:
        return PEAK_RATE * (step + 1) / 20
    part = (step - 20) / max(1, steps - 20)
    return PEAK_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))


def train(model, tokenizer, pairs, texts: list[str], seed: int, steps: int, progress: Progress) -> float:
    """Trains in place; returns the mean loss of the last 20 steps."""
    import torch

    draw = random.Random(seed)
    optimizers = _optimizers(model)
    losses: list[float] = []
    batches: list[list[Row]] = []
    model.train()
    for step in range(steps):
        batches = batches or batches_of_one_pass(tokenizer, pairs, texts, draw)
        loss = _loss(model, batches.pop())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if step % 10 == 9 or step == steps - 1:
            progress("train", step + 1, steps)
    return sum(losses[-20:]) / len(losses[-20:])


def _optimizers(model) -> list:
    """Muon for the matrices, which here learns in about half the steps of AdamW; AdamW for all else."""
    import torch

    inner, outer = [], []
    for name, weight in model.named_parameters():
        (inner if weight.ndim == 2 and "embed" not in name else outer).append(weight)
    return [
        torch.optim.Muon(
            inner, weight_decay=0.05, momentum=0.9, ns_steps=NS_STEPS, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _loss(model, batch):
    import torch

    width = max(len(tokens) for tokens, _ in batch)
    tokens = torch.tensor([row + [1] * (width - len(row)) for row, _ in batch])
    labels = torch.tensor([row + [-100] * (width - len(row)) for _, row in batch])
    # Padding is on the right and attention is causal, so no mask is needed: nothing learned sees the padding.
    return model(input_ids=tokens, labels=labels, use_cache=False).loss


def write_model(directory: Path, model, tokenizer) -> None:
    """Writes what a server needs to load the model, with files that depend on nothing but their content."""
    import torch
    import transformers

    model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = 1
    model.generation_config.do_sample = False
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": START, "eos_token": END, "pad_token": END,
        "model_max_length": CONTEXT_LENGTH, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    })  # fmt: skip
    _write_json(directory / "special_tokens_map.json", {
        "bos_token": START, "eos_token": END, "pad_token": END,
        "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
    })  # fmt: skip
    for name in ("config.json", "generation_config.json"):
        _write_json(directory / name, json.loads((directory / name).read_text(encoding="utf-8")))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """What, beside the seed and the inputs, decides the bytes."""
    import tokenizers
    import torch
    import transformers

    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def build(directory: Path, seed: int, steps: int, progress: Progress) -> None:
    """Makes every file of the model in `directory`, which must exist and be empty."""
    import torch

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    pairs, texts = corpus.load()
    progress("tokenizer", 0, 1)
    tokenizer = train_tokenizer([text for pair in pairs for text in (pair.question, pair.answer)] + texts)
    progress("tokenizer", 1, 1)
    model = new_model(seed)
    loss = train(model, tokenizer, pairs, texts, seed, steps, progress)
    progress("write", 0, 1)
    write_model(directory, model, tokenizer)
    here = Path(__file__).parent
    _write_json(directory / "model-build.json", {
        "seed": seed, "steps": steps, "final_loss": round(loss, 6), "versions": versions(),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "inputs": {name: sha256_of(here / name) for name in INPUTS},
        "files": {path.name: sha256_of(path) for path in sorted(directory.iterdir())},
    })  # fmt: skip
    progress("write", 1, 1)


def main(arguments: list[str] | None = None) -> int:
    """Command line: builds beside the wanted directory and moves it into place when it is whole."""
    parser = argparse.ArgumentParser(description="Build the Farebox sample model.")
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of the model; replaced when it exists"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--progress", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    out: Path = options.out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        work.chmod(0o755)
        build(work, options.seed, options.steps, Progress(options.progress == "json"))
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
