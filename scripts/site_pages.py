"""Pages of the documentation's site that are not in docs/: those at the top of the repository, and those written from the code.

mkdocs calls on_files and on_page_markdown (see mkdocs.yml).
"""

from __future__ import annotations

import ast
import re
from inspect import cleandoc
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
TOP = {"README.md": "start.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]*)(#[^)\s]*)?\)")
PUBLIC = re.compile(r"^(?P<call>[a-z]\w*\((?P<arguments>.*?)\) returns .*)$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    pages = {page: _from_the_top((ROOT / name).read_text(encoding="utf-8")) for name, page in TOP.items()}
    pages |= {"sql-reference.md": sql_reference(), "messages.md": messages()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    icon = (ROOT / "callipper_db" / "web" / "static" / "icon.svg").read_text(encoding="utf-8")
    files.append(File.generated(config, "images/icon.svg", content=icon))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to the pages at the top; what the site does not have is named without a link."""

    def lead(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if not target.startswith("../"):
            return link[0]
        found = TOP.get(target.removeprefix("../"))
        return f"[{text}]({found}{anchor})" if found else text

    return LINK.sub(lead, markdown)


def _from_the_top(text: str) -> str:
    """A page of the repository's top, as if it were in docs/."""

    def lead(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if target.startswith("docs/") or not target:
            return f"[{text}]({target.removeprefix('docs/')}{anchor})"
        return f"[{text}](../{target}{anchor})"

    return re.sub(r'(\]\(|")docs/images/', r"\1images/", LINK.sub(lead, text))


def sql_reference() -> str:
    """Every function that users may call, as the catalogue describes it."""
    lines = (ROOT / "tests" / "golden" / "catalogue.txt").read_text(encoding="utf-8").splitlines()
    parts = ["# SQL reference", "Written from the comments of the functions. [Asking in SQL](sql.md) introduces them."]
    schema = ""
    for number, line in enumerate(lines):
        if line.startswith("== "):
            schema = line.removeprefix("== functions of ") if line.startswith("== functions of ") else ""
        elif schema and (found := PUBLIC.match(line)):
            about = next(text for text in lines[number + 1 :] if text.startswith("    -- ")).removeprefix("    -- ")
            name = found["call"].split("(")[0]
            parts += [f"## {schema}.{name}", f"```sql\n{found['call']}\n```", about]
    return "\n\n".join(parts) + "\n"


def messages() -> str:
    """Every message of the program: it says what is wrong and what to do."""
    tree = ast.parse((ROOT / "callipper_db" / "errors.py").read_text(encoding="utf-8"))
    parts = [
        "# Messages",
        "What the program says when it cannot go on, by what it is about. Words in braces are filled in.",
    ]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name != "CallipperError":
            about = " ".join(cleandoc(ast.get_docstring(node) or "").split())
            is_group = [ast.unparse(base) for base in node.bases] == ["CallipperError"]
            parts.append(f"## {about.rstrip('.')}" if is_group else f"### {_words(node.name)}\n\n`{about}`")
    return "\n\n".join(parts) + "\n"


def _words(name: str) -> str:
    """ConnectionFailed as 'Connection failed'."""
    return re.sub(r"(?<!^)([A-Z])", r" \1", name).capitalize()
