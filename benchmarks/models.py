"""Random Llamas of known shapes, with the toy model's tokenizer: for what takes the same time whatever a
model knows."""

import gc
import itertools
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from pipeline.toy.model import WEIGHTS

SHAPES: dict[str, dict[str, Any]] = {
    # 25M parameters, half of them embeddings, for training.
    "small": {
        "vocab_size": 32_000,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    # 25M parameters, for sampling: every word that it can write is one of the toy's.
    "small-toy-words": {
        "vocab_size": 1280,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 9,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    # The shape of SmolLM2-135M, with fewer words.
    "135m": {
        "vocab_size": 32_000,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    # The shape of Mistral-7B.
    "7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
    },
}
NAMES = (
    "toy, small (a random Llama of 25M parameters, vocabulary 32 000), 135m (of SmolLM2-135M's shape), 7b (of"
    " Mistral-7B's shape) or a directory"
)


def model_dir(name: str, parent: str | Path) -> str:
    """The directory of a model: the toy's, a random one's below `parent`, or `name` itself.

    A random model is made if `parent` does not hold it yet: in bfloat16, on a GPU if there is one.
    """
    if name == "toy":
        return str(WEIGHTS)
    if name not in SHAPES:
        return name
    directory = Path(parent, name)
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}-"))
        save(name, unfinished)
        unfinished.rename(directory)
    return str(directory)


def save(name: str, directory: Path) -> None:
    """Write a random model, and the toy's tokenizer, into a directory."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    config = LlamaConfig(
        **SHAPES[name],
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(directory, max_shard_size="4GB")
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(directory)
    _fill(Path(directory, "tokenizer.json"), config.vocab_size)


def _fill(file: Path, size: int) -> None:
    """Add words to a tokenizer, for a model that samples from all of its own. No text is encoded by them."""
    found = json.loads(file.read_text(encoding="utf-8"))
    words = found["model"]["vocab"]
    triples = ("".join(letters) for letters in itertools.product(string.ascii_letters, repeat=3))
    new = (triple for triple in triples if triple not in words)
    words.update(zip(list(itertools.islice(new, size - len(words))), range(len(words), size), strict=True))
    file.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
