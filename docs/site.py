"""A hook of MkDocs: pages link as the repository needs it, and the site has what they link to.

README.md is the first page. Files outside of docs/ that a page links to become pages too: Markdown as it is,
code in a block. A link to a folder loses its link and keeps its text. So no page is written twice, and every
link works in the repository and on the site.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
# Pages of the navigation that stand outside of docs/.
OUTSIDE = (
    "README.md",
    *("AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/README.md"),
    *("benchmarks/README.md", "benchmarks/RESULTS.md", "benchmarks/TIMES.md"),
)
BLOCKS = {".py": "python", ".yaml": "yaml"}  # become pages with a block; other files stay as they are


def page(path: str) -> str | None:
    """The page or file of the site for a file of the repository; None if it has none."""
    if not (ROOT / path).is_file():
        return None
    if path == "README.md":
        return "index.md"
    inside = path.removeprefix("docs/")
    if inside != path or path.endswith(".md"):
        return inside
    return f"source/{path}.md" if Path(path).suffix in BLOCKS else f"source/{path}"


def repository(source: str) -> str:
    """The file of the repository that a page is made of: the other way round."""
    if source == "index.md":
        return "README.md"
    return source if (ROOT / source).is_file() else f"docs/{source}"


def links(path: str, text: str) -> Iterator[str]:
    """The files of the repository that a Markdown file links to."""
    for found in LINK.finditer(text):
        target = found["target"]
        if target and "://" not in target and not target.startswith("mailto:"):
            yield posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def on_files(files, config):
    """Add the files outside of docs/ that pages link to."""
    todo = [*OUTSIDE, *(f"docs/{one.src_uri}" for one in files.documentation_pages())]
    known = {one.src_uri for one in files}
    for path in todo:
        text = (ROOT / path).read_text(encoding="utf-8")
        targets = [path, *links(path, text)]
        for target in targets:
            name = page(target)
            if name is None or name in known:
                continue
            known.add(name)
            files.append(_file(target, name, config))
            if target.endswith(".md") and target not in todo:
                todo.append(target)
    return files


def _file(path: str, name: str, config):
    from mkdocs.structure.files import File, InclusionLevel

    text = (ROOT / path).read_text(encoding="utf-8")
    if name.startswith("source/") and name.endswith(".md"):
        fence = "`" * (3 + max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=0))
        text = f"# {path}\n\n{fence}{BLOCKS[Path(path).suffix]}\n{text}\n{fence}\n"
    made = File.generated(config, name, content=text)
    if name not in OUTSIDE and name != "index.md":
        made.inclusion = InclusionLevel.NOT_IN_NAV
    return made


def on_page_markdown(markdown, page, config, files):
    """Point the links of a page to the pages of the site."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    path = repository(page.file.src_uri)
    return rewritten(path, page.file.src_uri, markdown)


def rewritten(path: str, place: str, text: str) -> str:
    """path: of the page in the repository. place: on the site. Code blocks stay as they are."""
    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _relinked(path, place, part) for part in parts)


def _relinked(path: str, place: str, text: str) -> str:
    def new(found: re.Match) -> str:
        target, anchor = found["target"], found["anchor"] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return found[0]
        there = page(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
        if there is None and (ROOT / posixpath.dirname(path) / target).is_dir():
            return found["text"][1:-1]
        if there is None:
            return found[0]  # MkDocs says that it is broken
        return f"{found['text']}({posixpath.relpath(there, posixpath.dirname(place) or '.')}{anchor})"

    return LINK.sub(new, text)
