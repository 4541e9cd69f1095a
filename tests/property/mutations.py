"""What can happen to a configuration: to the tree, to the bytes of the file, to an override, to a prompt file
that it names."""

import random
import re

import yaml

DEEP: dict = {}
for _ in range(80):
    DEEP = {"a": [DEEP]}

VALUES = [
    None, True, False, 0, 1, 2, -1, 3.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), -float("inf"), 2**31, 2**63, 2**64, -(2**70), 10**90,
    10**4000, "", " ", "x", "null", "toy", "dummy", "x" * 100_000, "a\nb", "\t", "\x00", "\x1b[31mred", "\u202e", "\ufffe", "é" * 300, "💣",
    "a/" * 3000, "..", ".", "~", "~nobody/x", "/dev/null", "/dev/zero", "fifo", "directory", "pku.jsonl", "asked.jsonl", "prompts.yaml", "none.yaml",
    "hub:", "hub:x", "hub:a/b/c", "toy:", "toy:none", "file:///nowhere", "file://", "s4://a/b", "://", "*", "[", "*.jsonl", "a*b", "**", "http://",
    "http://[", "https://a:b@c/", "http://\x00", "http://a:999999/", [], {}, [[]], [None], ["x"], [1, 2], [2, 1], [0, 0], [1, 2, 3], [1, "x"],
    {"path": "toy"}, {"path": None}, {"kind": "rating"}, {"kind": ["rating"]}, {"kind": {}}, {"name": []}, {"name": {"a": 1}}, {"method": [1]},
    {"": ""}, {1: 2}, {None: None}, {"a.b": 1}, {"__class__": 1}, {"x" * 5000: 1}, {"\x07": 1}, {"train": {"train": {}}}, DEEP, ["x"] * 5000,
]  # fmt: skip
# What stands somewhere in a sound configuration.
WORDS = [
    "toy", "dummy", "vllm", "openai", "pku.jsonl", "asked.jsonl", "prompts.yaml", "judge.yaml", "directory", "fifo", "none.jsonl", "toy:harmful-train",
    "toy:detailed-heldout", "main", "auto", "float32", "refusal", "rating", "phrases", "yes_no", "sft", "dpo", "mistake_analysis",
    "course_correction", "induced", "reference", "suffix", "system", "words", "tokens", "plain", "reminder", "hint", "analysis", "safe",
    "helpful", "continue", "constant", "linear", "cosine", "shuffled", "ordered", "staged", "best_only", "all-linear", "q_proj", "lm_head",
    ".*", "(", "[a-z",
]  # fmt: skip
KEYS = [
    "", "path", "kind", "name", "method", "train", "a b", "é", "__proto__", "x" * 3000, "\x1b[2J", "\n",
    "a.b", "model_config", "dummy", "engine", 1, None, True,
]  # fmt: skip


def places(tree):
    """Every key and index of a tree, as the container and the key in it."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in items:
        yield tree, key
        yield from places(child)


def copied(tree):
    if isinstance(tree, dict):
        return {key: copied(child) for key, child in tree.items()}
    return [copied(child) for child in tree] if isinstance(tree, list) else tree


def mutated_tree(r: random.Random, tree: dict) -> object:
    """The tree with one to three keys dropped, misspelt, moved or given another value."""
    tree = copied(tree)
    for _ in range(r.choice([1, 1, 1, 1, 2, 3])):
        found = list(places(tree))
        if not found:
            break
        node, key = r.choice(found)
        kind = r.choice(["value"] * 4 + ["alike"] * 4 + ["drop", "rename", "add", "swap", "wrap"])
        if kind == "value":
            node[key] = r.choice(VALUES)
        elif kind == "alike":
            node[key] = alike(r, node[key])
        elif kind == "drop":
            del node[key]
        elif kind == "wrap":
            node[key] = r.choice([[node[key]], {"a": node[key]}, {key: node[key]}])
        elif kind == "swap":
            other, there = r.choice(found)
            node[key] = (
                copied(other[there])
                if there in range(len(other)) or (isinstance(other, dict) and there in other)
                else None
            )
        elif isinstance(node, dict):
            name = r.choice(KEYS)
            if kind == "rename" and isinstance(key, str) and r.random() < 0.7:
                name = typo(r, key)
            node[name] = node.pop(key) if kind == "rename" else r.choice(VALUES)
    return tree


def alike(r: random.Random, value):
    """Another value of the same type: what passes the first checks, and meets the later ones."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return r.choice(
            [0, 1, 2, 3, value / 2, value * 2, value + 1, value - 1, -value, 10**6, 2**31 - 1, 1e-300, 1e300]
        )
    if isinstance(value, str):
        return r.choice(
            [*WORDS, value.upper(), value + "/x", "./" + value, value + "\u00a0", value[:-1], value * 2]
        )
    if isinstance(value, list):
        return r.choice([value[::-1], value[:1], value * 2, [*value, 1], []])
    return {}


def typo(r: random.Random, word: str) -> str:
    i = r.randrange(len(word) + 1)
    return r.choice(
        [word[:i] + word[i + 1 :], word[:i] + r.choice("aeioux_-. ") + word[i:], word.upper(), word[::-1]]
    )


INSERTED = [
    b"\t", b"\x00", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"---\n", b"...\n", b"%YAML 9.9\n---\n", b"&a ", b"*a", b"*a ",
    b"<<: *a\n",
    b"!!python/object/apply:os.getcwd []", b"!!python/name:os.system ", b"!!int ", b"!!float ", b"!!timestamp ", b"!!bool ", b"!!binary ", b"!!set ",
    b"!!omap ", b"!!null ", b"!x ", b"!<tag:yaml.org,2002:str> ", b"? ", b"? [a]\n: b\n", b": ", b"- ", b"{", b"}", b"[", b"]", b"'", b'"', b"|\n",
    b">-\n", b"# ",
    b"@", b"`", b"\xe2\x80\xa8", b"\xc2\x85", b"\\ud800", b'"\\ud800"', b'"\\x1b"', b"9" * 5000, b"0x" + b"f" * 5000, b"1:" * 3000 + b"1",
    b"2024-13-45",
    b"2024-01-01", b"[" * 3000, b"{a: " * 3000, b"- " * 3000, b"? " * 3000, b"x" * 60_000, b"x: 1\n" * 3,
]  # fmt: skip


def mutated_text(r: random.Random, text: bytes) -> bytes:
    """The bytes of a file after one to four accidents."""
    if r.random() < 0.04:
        text = text.replace(b"\n", b"\r\n")
    if r.random() < 0.03:
        return text.decode().encode(r.choice(["utf-16", "utf-32", "utf-7", "cp037"]))
    for _ in range(r.choice([1, 1, 1, 2])):
        i, j = r.randrange(len(text) + 1), r.randrange(len(text) + 1)
        kind = r.choice(["insert"] * 4 + ["cut", "drop", "flip", "repeat", "lines", "lines"] + ["digit"] * 3)
        if kind == "insert":
            text = text[:i] + r.choice(INSERTED) + text[i:]
        elif kind == "cut":
            text = text[:i]
        elif kind == "drop":
            text = text[: min(i, j)] + text[max(i, j) :]
        elif kind == "flip" and i < len(text):
            text = text[:i] + bytes([text[i] ^ (1 << r.randrange(8))]) + text[i + 1 :]
        elif kind == "digit":
            text = re.sub(
                rb"\d+",
                lambda found: r.choice([b"0", b"1", b"7", b"4e9", b"-1", found[0]]),
                text,
                count=r.choice([1, 5]),
            )
        elif kind == "repeat":
            text = text[: max(i, j)] + text[min(i, j) :]
        else:
            lines = text.splitlines(keepends=True)
            r.shuffle(lines)
            text = (
                b"".join(lines) if r.random() < 0.2 else b"".join(line for line in lines if r.random() < 0.9)
            )
    return text


def mutated_override(r: random.Random, tree: dict) -> str:
    """`key.sub=value` with a key that may exist and a value of any kind."""
    node, names = tree, []
    while isinstance(node, dict) and node and (not names or r.random() < 0.8):
        names.append(str(r.choice(list(node))))
        node = node[names[-1]]
    key = ".".join(names)
    key = r.choice(
        [key] * 12
        + [
            typo(r, key),
            key + ".a",
            "a." * 4000 + "b",
            "train" + ".lora" * 2000,
            ".",
            f" {key} ",
            key + "..x",
            "\x1b",
            "\udcff",
        ]
    )
    value = r.choice([r.choice(VALUES), alike(r, node)])
    simple = (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True, width=10**9)
        if value is not DEEP
        else "[" * 500
    )
    text = r.choice(
        [simple] * 8
        + [
            r.choice(INSERTED).decode("utf-8", "surrogateescape"),
            "&a [*a]",
            "{a: 1, a: 2}",
            "*x",
            "[" + "1," * 3000 + "]",
        ]
    )
    return key + r.choice(["="] * 20 + ["", "==", " = "]) + text.replace("\x00", r.choice(["", "\\0"]))


PROMPTS = b"corrects: '{{ instruction }} {{ prefill }} {{ continuation }} yes or no?'\n"
TEMPLATES = [
    "{{", "}}", "{%", "{% if %}", "{% if x %}", "{{ x }}", "{{ instruction.x }}", "{{ instruction[99] }}", "{{ 1 / 0 }}",
    "{{ 'a' % 1 }}", "{{ range(10**9) }}",
    "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ " + "(" * 5000, "{{ " + "-" * 3000 + "1 }}",
    "{% raw %}", "{{ self.x() }}", "{{ instruction.__class__ }}", "{{ cycler() }}", "{{ instruction|nope }}",
    "{{ x is nope }}", "{% for a in 1 %}{% endfor %}",
    "{% if 1 %}" * 30 + "{% endif %}" * 30, "{% set a.b = 1 %}", "{{ 10 ** 400 * 1.5 }}", "{{ ''.join }}", "{{ namespace(1) }}",
    "{# ", "", "\x1b", "\n", "a" * 9000,
    "{{ lipsum(n=-1) }}", "{{ instruction|int('x') }}", "{{ 'x'|round }}", "{{ [1]|groupby('a')|list }}",
    "{{ instruction|tojson|safe }}", "{% call x() %}{% endcall %}",
]  # fmt: skip


def mutated_prompts(r: random.Random) -> bytes:
    """A prompt file whose texts or names are others, or whose bytes are damaged."""
    texts = yaml.safe_load(PROMPTS)
    name = r.choice(list(texts))
    i = r.randrange(len(texts[name]))
    bad = r.choice(TEMPLATES)
    texts[name] = r.choice([texts[name][:i] + bad + texts[name][i:], bad, r.choice(VALUES)])
    if r.random() < 0.2:
        texts[r.choice(KEYS)] = texts.pop(name)
    content = yaml.safe_dump(texts, allow_unicode=True).encode("utf-8", "surrogatepass")
    return mutated_text(r, content) if r.random() < 0.2 else content
