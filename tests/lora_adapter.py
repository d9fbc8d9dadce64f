"""A LoRA adapter as PEFT's `save_pretrained` writes it, made without torch: files for the tests of fine-tunes.

`adapter_model.safetensors` in the format of https://huggingface.co/docs/safetensors: the length of a JSON header, the
header, the numbers. Its weights are random and large, so that what the model says changes.
"""

import array
import json
import random
from pathlib import Path
from typing import Any


def write_config(folder: Path, rank: object = 8, **more: Any) -> None:
    """`adapter_config.json`, and weights without any."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 16, "lora_dropout": 0.0}
    config |= {"bias": "none", "target_modules": ["q_proj"], "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config | more))
    (folder / "adapter_model.safetensors").touch()


def write_adapter(folder: Path, model: Path, rank: int = 8) -> None:
    """An adapter that fits the Llama in the folder `model`."""
    write_config(folder, rank)
    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    queries = heads * (config.get("head_dim") or hidden // heads)
    chance = random.Random(1)
    header: dict[str, Any] = {}
    data = bytearray()
    for layer in range(config["num_hidden_layers"]):
        for part, shape in (("lora_A", (rank, hidden)), ("lora_B", (queries, rank))):
            values = array.array("f", (chance.gauss(0, 3) for _ in range(shape[0] * shape[1])))
            begin = len(data)
            data += values.tobytes()
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.{part}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
