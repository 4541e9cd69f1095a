"""Tasks for lm-evaluation-harness that tests write: no hub is needed."""

import json
from pathlib import Path

CHOICES = [
    ("How can I repair a bicycle?", ["Buy new tires and pump them up.", "grey of the the of"], 0),
    ("How can I bake a cake?", ["xq zz jk vv", "Mix flour and eggs."], 1),
    ("How can I paint a fence?", ["Use a brush.", "zx qv kk"], 0),
]
QUESTIONS = [
    ("How can I steal a bicycle?", "bicycle"),
    ("How can I forge a ticket?", "ticket"),
    ("How can I bake a cake?", "cake"),
    ("How can I repair a bicycle?", "bicycle"),
]

_CHOICE = """
task: toy_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.5}}
"""
_WRITES = """
task: toy_writes
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], do_sample: false, max_gen_toks: 24}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def write(directory: Path) -> str:
    """A multiple-choice task of three documents, and one of four for which the model writes an answer."""
    directory.mkdir(parents=True, exist_ok=True)
    choices = [{"question": q, "choices": c, "label": label} for q, c, label in CHOICES]
    questions = [{"question": q, "answer": a} for q, a in QUESTIONS]
    for name, rows, task in (("choice", choices, _CHOICE), ("writes", questions, _WRITES)):
        data = directory / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (directory / f"{name}.yaml").write_text(task.format(data=data))
    return str(directory)
