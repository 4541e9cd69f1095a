"""A chat model of a few thousand random weights and a data set to train it on, made in a second, for tests of
training."""

import random
import tempfile
from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path

from pipeline import preflight
from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.data.store import Store
from pipeline.schema import PREFERENCES, SFT, Schema
from pipeline.templates import ChatTemplate
from tests import scripted

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor"
    " %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCE = (
    "how can i bake a cake forge ticket sorry no this is harmful because it hurts people sure first take the"
    " then mix"
)
WORDS = SENTENCE.split()


def tokenizer(chat_template: str | None = CHATML):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()), pad_token=PAD, eos_token=END, chat_template=chat_template
    )


@cache
def _bpe() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[PAD, START, END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([SENTENCE + "\n\n user assistant"] * 3, trainer)
    return bpe.to_str()


def template(chat_template: str | None = CHATML) -> ChatTemplate:
    return ChatTemplate(tokenizer(chat_template))


def model(**changes):
    """A random Llama with grouped-query attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer()), **{"max_position_embeddings": 1024, **shape, **changes})
    )


def save(directory: Path, chat_template: str | None = CHATML, **changes) -> str:
    """The model and its tokenizer as files, which a process makes once and copies from then on."""

    def make(into: Path) -> None:
        model(**changes).save_pretrained(into)
        tokenizer(chat_template).save_pretrained(into)

    return copied(directory, (chat_template, repr(changes)), make)


_made: dict[Hashable, dict[str, bytes]] = {}


def copied(directory: Path, key: Hashable, make: Callable[[Path], None]) -> str:
    """A directory of the files that `make` writes; the key stands for its content."""
    if key not in _made:
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch))
            _made[key] = {file.name: file.read_bytes() for file in Path(scratch).iterdir()}
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, content in _made[key].items():
        Path(directory, name).write_bytes(content)
    return str(directory)


def adapter(root: Path, name: str, seed: int, **settings) -> None:
    """An adapter with random matrices on the tiny model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(root / "model")
    model = get_peft_model(
        base, LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings)
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    model.save_pretrained(root / name)


def conversation(r: random.Random, kind: str = "safe") -> list[dict]:
    words = r.choices(WORDS, k=r.randint(20, 50) if kind == "analysis" else r.randint(3, 9))
    return [
        {"role": "user", "content": " ".join(words)},
        {"role": "assistant", "content": " ".join(r.choices(WORDS, k=r.randint(3, 30)))},
    ]


def rows(n: int) -> list[dict]:
    """Rows of schema SFT: analyses (with long prompts), safe and helpful pairs in turn."""
    r = random.Random(1)
    kinds = [("analysis", "safe", "helpful")[i % 3] for i in range(n)]
    return [
        {"id": f"row-{i}", "instruction_id": f"row-{i}", "kind": k, "messages": conversation(r, k)}
        for i, k in enumerate(kinds)
    ]


def responses(r: random.Random) -> list[str]:
    """Six ranked responses of C²-Syn's shape: a safe one, four that turn away from ever longer cuts of one
    text, and the whole text."""

    def words(n: int) -> str:
        return " ".join(r.choices(WORDS, k=n))

    cuts = ["sure " + words(3)]
    for _ in range(4):
        cuts.append(f"{cuts[-1]} {words(r.randint(2, 5))}")
    return [words(5), *(f"{cut} sorry {words(4)}" for cut in cuts[:4]), cuts[4]]


def preferences(groups: int) -> list[dict]:
    """Rows of schema PREFERENCES: all 15 pairs of six responses, per group."""
    r = random.Random(2)
    rows = []
    for g in range(groups):
        prompt, ranked = (
            [{"role": "user", "content": " ".join(r.choices(WORDS, k=r.randint(3, 9)))}],
            responses(r),
        )
        for i, better in enumerate(ranked, 1):
            for j, worse in enumerate(ranked[i:], i + 1):
                pair = {
                    side: [{"role": "assistant", "content": text}]
                    for side, text in (("chosen", better), ("rejected", worse))
                }
                rows.append(
                    {
                        "id": f"{g}-{i}-{j}",
                        "group": f"group-{g}",
                        "prompt": prompt,
                        "rank_chosen": i,
                        "rank_rejected": j,
                        **pair,
                    }
                )
    return rows


def write(directory: Path, rows: list[dict], schema: Schema = SFT) -> Dataset:
    """A finished data set, as `mix` leaves it."""
    store = Store(str(directory.parent), directory.name, schema)
    store.open({})
    store.write_rows(rows)
    return store.dataset


def write_preferences(directory: Path, rows: list[dict]) -> Dataset:
    return write(directory, rows, PREFERENCES)


def config(model_dir: str, **train) -> Config:
    """A configuration whose arms (`dpo`, or `sft` and `mistake_analysis`) are trained like this."""
    return Config.model_validate(
        scripted.composed(
            {
                "run_dir": "unused",
                "seed": 7,
                "model": {"path": model_dir, "dtype": "float32"},
                "instructions": {"path": "unused"},
                "recipe": {
                    "name": "course_correction" if train.get("method") == "dpo" else "mistake_analysis"
                },
                "evaluation": {"harmful": {"path": "unused"}},
                "train": {"lora": {"rank": 4}, "learning_rate": 1e-3, "bf16": False, **train},
            }
        )
    )


def spec(config: Config, arm: str):
    """The arm to train, as the run hands it to training."""
    return preflight.arm_specs(config, config.model.path)[arm]


def prepared(config: Config, arm: str, dataset: Dataset):
    """The arm's training set."""
    return config.arms[arm].train.prepare(template(), dataset, config.arms[arm].kinds, config.seed)


def job(config: Config, arm: str, state: str, number: int, run, name: str, **more):
    """The job of one run of an arm."""
    from pipeline.training.job import Job

    return Job(
        arm,
        config.arms[arm].train,
        config.model,
        config.model.path,
        config.seed,
        state,
        number,
        run,
        name,
        **more,
    )
