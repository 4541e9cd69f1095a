"""The toy chat model: a Llama of about a million parameters, trained from scratch on the toy world.

The package contains its weights, so no use trains it and every machine has the same model.

It is a demonstration and a test bed: it shows how the method works and is no evidence about large models.

    python -m pipeline.toy.model    retrain it and write it to pipeline/toy/weights (same as `make toy`)
"""

import hashlib
import json
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.chat import Message
from pipeline.runtime.console import step_bar
from pipeline.runtime.machine import cpu_has_bf16
from pipeline.toy.corpus import Corpus

Progress = Callable[[int, int, float], None]

WEIGHTS = Path(__file__).with_name("weights")
RECIPE_FILE = "recipe.json"  # next to the weights: their recipe and its hash

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"

# `generation` marks the assistant's text for trainers with an assistant mask; it prints nothing.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Training settings besides the conversations. They are part of the recipe, so rerun `make toy` after a
# change.
SEED = 0
CONVERSATIONS = 32_000
TOKENIZER: dict[str, Any] = {
    "vocab_size": 1280,
    "special_tokens": [PAD, START, END],
    "chat_template": CHAT_TEMPLATE,
    "conversations": 4000,  # the first ones, enough to learn the merges
}
ARCHITECTURE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    # The default, 0.02, suits widths in the thousands; for this model it costs half of the training time.
    "initializer_range": 0.06,
}
OPTIMIZER = {"lr": 3e-3, "weight_decay": 0.01, "betas": (0.9, 0.95)}
TRAINING = {
    "tokens_per_batch": 1536,  # padding included
    "warmup": 0.05,  # of all steps
    "clip_norm": 1.0,
}


def recipe() -> dict:
    """The inputs of the model's training, and their `hash`. Takes about a second.

    Included: a digest of the training conversations (texts and order, with rendered prompts of the package);
              the seed; the settings of tokenizer (with chat template), architecture, optimizer and batches.

    Not included: source files, their paths and formatting, library versions, and the code below (the kind of
    tokenizer, the order of batches, the loss). Rerun `make toy` also after changes of these that should
    change the model; tests/long detects unintended changes.
    """
    parts = {
        "conversations": _digest(*map(_canonical, _conversations())),
        "seed": SEED,
        "tokenizer": TOKENIZER,
        "architecture": ARCHITECTURE,
        "optimizer": OPTIMIZER,
        "training": TRAINING,
    }
    return {"hash": _digest(_canonical(parts))[:12], **json.loads(_canonical(parts))}


@cache
def shipped_recipe() -> dict:
    """The recipe that the weights in the package were made from."""
    return json.loads((WEIGHTS / RECIPE_FILE).read_text(encoding="utf-8"))


def build(directory: Path, on_progress: Progress = lambda step, steps, loss: None) -> None:
    """Train the model and write it to a directory: weights, tokenizer, recipe. Takes minutes on two cores.

    `on_progress(step, steps, loss)` is called every few steps. Nothing is written before training ends. On
    one machine with the same libraries, the bytes are the same each time.
    """
    import torch

    conversations = _conversations()
    tokenizer = _train_tokenizer(conversations[: TOKENIZER["conversations"]])
    examples = [_encode(tokenizer, conversation) for conversation in conversations]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # nearly as fast as two for this small model, and not slowed by other processes
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = _new_model(tokenizer)
            _train(model, _batches(examples), on_progress)
    finally:
        torch.set_num_threads(threads)
    _save(model, tokenizer, directory)
    (directory / RECIPE_FILE).write_text(json.dumps(recipe(), indent=2) + "\n", encoding="utf-8")


def _conversations() -> list[list[Message]]:
    corpus = Corpus(SEED)
    return [corpus.draw() for _ in range(CONVERSATIONS)]


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _train_tokenizer(conversations: list[list[Message]]):
    """A byte-level BPE: it encodes any text, and toy-world text in about one token per word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER["vocab_size"],
        special_tokens=TOKENIZER["special_tokens"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((f"{m['role']}\n{m['content']}" for c in conversations for m in c), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        chat_template=TOKENIZER["chat_template"],
        model_max_length=ARCHITECTURE["max_position_embeddings"],
    )


def _encode(tokenizer, conversation: list[Message]) -> tuple[list[int], int]:
    """Token ids of a conversation and the position at which its last turn's text begins."""
    prompt = tokenizer.apply_chat_template(conversation[:-1], add_generation_prompt=True, tokenize=False)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(conversation[-1]["content"] + END, add_special_tokens=False)["input_ids"]
    return head + tail, len(head)


def _new_model(tokenizer):
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **ARCHITECTURE,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # 1.7 times as fast as the fused kernel for short sequences on a CPU
    model.set_attn_implementation("eager")
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def _save(model, tokenizer, directory: Path) -> None:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # one shard: its bar would only disturb the caller's bar
    try:
        model.save_pretrained(directory)
    finally:
        if shown:
            logging.enable_progress_bar()
    tokenizer.save_pretrained(directory)
    _halve(directory / "model.safetensors")


def _halve(file: Path) -> None:
    """Store the tensors in float16, which halves the file. They load as float32, as config.json says."""
    from safetensors.torch import load, save

    tensors = {name: tensor.half() for name, tensor in load(file.read_bytes()).items()}
    file.unlink()  # transformers made it readable only for its owner; a new file has default permissions
    file.write_bytes(save(tensors, {"format": "pt"}))


def _batches(examples: list[tuple[list[int], int]]) -> list[list[tuple[list[int], int]]]:
    """Batches of about `tokens_per_batch` tokens, each of examples of similar length, in shuffled order."""
    batches: list[list[tuple[list[int], int]]] = []
    batch: list[tuple[list[int], int]] = []
    for example in sorted(examples, key=lambda e: len(e[0])):
        if (len(batch) + 1) * len(example[0]) > TRAINING["tokens_per_batch"]:
            batches.append(batch)
            batch = []
        batch.append(example)
    batches.append(batch)
    random.Random(SEED).shuffle(batches)
    return batches


def _train(model, batches: list, on_progress: Progress) -> None:
    """One pass with AdamW, short warm-up, cosine decay.

    The loss is on the last turn only, as in chat fine-tuning.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), **OPTIMIZER, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, len(batches)))
    model.train()
    for step, batch in enumerate(batches, 1):
        loss = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAINING["clip_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == len(batches):
            on_progress(step, len(batches), loss.item())


def _rate(step: int, steps: int) -> float:
    warmup = TRAINING["warmup"] * steps
    return (
        step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    )


def _loss(model, batch: list[tuple[list[int], int]]):
    """Mean cross-entropy of the target tokens.

    Causal attention ignores the padding, which is on the right.
    """
    import torch

    longest = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), longest), model.config.pad_token_id)
    target = torch.zeros((len(batch), longest), dtype=torch.bool)
    for row, (tokens, start) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        target[row, start : len(tokens)] = True
    with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[target[:, 1:]])  # logits only for target positions, which saves work
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][target[:, 1:]])


if __name__ == "__main__":
    with step_bar("training the toy model") as update:
        build(WEIGHTS, lambda step, steps, loss: update(step, steps, f"loss {loss:.2f}"))
    print(f"toy model of recipe {shipped_recipe()['hash']} → {WEIGHTS}")
