"""The pages: links work in the repository and on the site, README is short, pictures show what is printed."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
COMMANDS = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "cluster/*.md", "benchmarks/*.md", "tests/data/*.md")
    for path in ROOT.glob(pattern)
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def targets(page: str) -> list[tuple[str, str]]:
    """(path, anchor) of every relative link and picture."""
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(read(page)))
    return [tuple(link.partition("#")[::2]) for link in found if not re.match(r"[a-z]+:", link)]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    for path, anchor in targets(page):
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page} links to {path}"
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), f"{page}: {path}#{anchor}"


def test_links_that_lead_nowhere_are_seen():
    assert ("missing.md", "") not in targets("README.md") and len(targets("README.md")) > 20
    assert "your-model-your-data" in anchors(README) and "missing" not in anchors(README)


def test_readme_takes_two_minutes():
    assert len(README.split()) <= 900


def test_every_page_is_named_by_readme_or_by_a_page_that_is():
    reached, todo = set(), ["README.md"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            linked = [(ROOT / page).parent / path for path, _ in targets(page) if path.endswith(".md")]
            todo += [str(path.resolve().relative_to(ROOT)) for path in linked]
    assert {page for page in PAGES if page.startswith("docs/")} <= reached


def navigation(part) -> list[str]:
    if isinstance(part, str):
        return [part]
    return [page for one in (part.values() if isinstance(part, dict) else part) for page in navigation(one)]


def test_every_page_of_docs_is_in_the_navigation_of_the_site():
    named = navigation(yaml.safe_load(read("mkdocs.yml"))["nav"])
    assert len(named) == len(set(named))
    assert {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} <= {*named}
    outside = {page for page in named if not (ROOT / "docs" / page).exists()} - {"index.md"}
    assert all((ROOT / page).exists() for page in outside)


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs/site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("path", "place", "text", "expected"),
    [
        ("README.md", "index.md", "[`docs/judges.md`](docs/judges.md)", "[`docs/judges.md`](judges.md)"),
        ("README.md", "index.md", "see [`cluster/`](cluster).", "see `cluster/`."),
        (
            "docs/scale.md",
            "scale.md",
            "[R](../benchmarks/RESULTS.md#scale)",
            "[R](benchmarks/RESULTS.md#scale)",
        ),
        ("docs/extending.md", "extending.md", "[c](../pipeline/cli.py)", "[c](source/pipeline/cli.py.md)"),
        ("docs/security.md", "security.md", "[l](../requirements.lock)", "[l](source/requirements.lock)"),
        ("cluster/README.md", "cluster/README.md", "[s](../docs/scale.md)", "[s](../scale.md)"),
        ("docs/judges.md", "judges.md", "[a](https://a.b/c) [b](#c)", "[a](https://a.b/c) [b](#c)"),
        ("docs/judges.md", "judges.md", "```\n[a](../cluster)\n```\n", "```\n[a](../cluster)\n```\n"),
    ],
)
def test_the_site_has_what_the_repository_links_to(site, path, place, text, expected):
    assert site.rewritten(path, place, text) == expected


def test_pictures_load_nothing_and_have_words():
    for page in PAGES:
        for words, path in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", read(page)):
            assert len(words.split()) >= 8, f"{page}: {path} says nothing to who cannot see it"
            picture = (ROOT / page).parent / path
            assert picture.stat().st_size < 100_000
            if picture.suffix == ".svg":
                others = re.findall(r"(?:href|src)=|@import|url\(\s*[\"']?https?:", picture.read_text())
                assert not others, picture


def test_the_terminal_shows_what_the_quickstart_prints():
    shown = re.sub(r"<[^>]+>", "", (ROOT / "docs/images/terminal.svg").read_text().partition("</style>")[2])
    block = re.search(r"^```\n(generate: .*?)^```", QUICKSTART, re.DOTALL | re.MULTILINE)[1]
    compact = re.sub(r"(&#160;|\s)+", "", shown)
    for line in block.splitlines():
        assert re.sub(r"\s+", "", line) in compact, line


def test_the_table_of_readme_is_that_of_the_quickstart():
    rows = re.findall(r"^\| (?:vanilla|SFT|mistake analysis|Critique-Revise) .*$", README, re.MULTILINE)
    assert len(rows) == 4 and all(row in QUICKSTART for row in rows)


def test_commands_of_readme_exist():
    named = re.findall(r"^setbacks (\w+)", README + read("docs/starting.md"), re.MULTILINE)
    assert len(named) > 8 and {*named} <= COMMANDS
    makes = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert makes and all(re.search(rf"^{target}:", read("Makefile"), re.MULTILINE) for target in makes)


def test_conventions_are_64_and_name_what_is_there():
    rows = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \| (.*?) \|$", read("docs/conventions.md"), re.MULTILINE)
    assert [int(number) for number, *_ in rows] == [*range(1, 65)]
    for number, _, state, shown in rows:
        assert re.match(r"(yes|partly|no)\b", state), number
        assert shown != "–" or state.startswith("no"), number
        for path in re.findall(r"`((?:pipeline|docs|configs|tests|cluster|examples)/[\w./]*)`", shown):
            assert (ROOT / path).exists(), (number, path)
        for command in re.findall(r"`setbacks (\w+)", shown):
            assert command in COMMANDS, (number, command)


def test_the_notebook_has_no_output():
    cells = json.loads(read("docs/quickstart.ipynb"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "--reveal" not in "".join(line for cell in code for line in cell["source"])
