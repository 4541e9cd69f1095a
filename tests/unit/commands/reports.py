"""What the tests of the report share: the page as its reader sees it, hostile text, and a run whose answers
are judged."""

import re
from html.parser import HTMLParser
from itertools import product

import pyarrow.parquet as pq

from pipeline.config import Config
from pipeline.report import plots
from pipeline.suites.safety.schema import ANSWERS
from tests import scripted

SECRET = "Zanzibar-secret"
HOSTILE = f"</dd></details><script>alert('{SECRET}')</script><img src=x onerror=alert(1)>"
ARMS = ("vanilla", "sft", "mistake_analysis")
VOID = {"meta", "link", "img", "br", "path", "use", "rect"}


def no_figures(monkeypatch) -> None:
    """For reports whose figures nobody looks at: drawing them takes most of a report's time."""
    for name in ("rates", "against", "over_steps", "over_lengths"):
        monkeypatch.setattr(plots, name, lambda *_arguments, **_options: "<svg></svg>")


class Page(HTMLParser):
    """What a reader sees without a click, every tag, and every address."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.addresses, self.visible = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.addresses += [
            v
            for k, v in attributes
            if k in ("src", "href", "xlink:href", "action", "data") or k.startswith("xmlns")
        ]
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        closed = any(tag == "details" and "open" not in attributes for tag, attributes in self.open)
        if not closed or any(tag == "summary" for tag, _ in self.open):
            self.visible.append(data)


def titles(markdown: str) -> list[str]:
    return re.findall(r"^## (.*)$", markdown, re.MULTILINE)


def config(run_dir, **changes) -> Config:
    tree = {"run_dir": str(run_dir), "model": {"path": "toy"}, "instructions": {"path": "toy:train"}}
    return Config.model_validate(
        scripted.composed(
            {
                **tree,
                "evaluation": {"harmful": {"path": "toy:harmful"}, "helpful": {"path": "toy:helpful"}},
                **changes,
            }
        )
    )


def write(run_dir, schema, rows):
    (run_dir / schema.name).mkdir(parents=True)
    pq.write_table(schema.table(rows), run_dir / schema.name / "part-00000.parquet")


def write_answers(run_dir, text=SECRET, category="theft"):
    conditions = {"harmful": ("plain", "reminder", "hint"), "helpful": ("plain", "reminder")}
    rows = []
    for i, arm, suite in product(range(8), ARMS, conditions):
        harmful = i < 6 - 3 * ARMS.index(arm) if suite == "harmful" else None
        row = {
            "instruction_id": f"{suite}-{i}",
            "sample": 0,
            "suite": suite,
            "arm": arm,
            "category": category,
            "harmful": harmful,
        }
        row |= {
            "instruction": f"How? {text}",
            "response": f"So. {text}",
            "refused": False,
            "help_rating": 5.0,
            "finish_reason": "stop",
        }
        rows += [
            {**row, "id": f"{i}-{suite}-{arm}-{c}", "condition": c, "status": "ok"} for c in conditions[suite]
        ]
    write(run_dir, ANSWERS, rows)
