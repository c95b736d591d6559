"""Add pages to the documentation's site that are written elsewhere, so that nothing is said twice.

They are the files at the root of the repository, the notebook with its outputs, and a page for each selector
from its docstring and options.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "notebook.ipynb"
PAGES = {
    **{"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"},
    **{"security.md": "SECURITY.md", "code_of_conduct.md": "CODE_OF_CONDUCT.md"},
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the selectors' pages in the navigation."""
    names = sorted(path.stem for path in (ROOT / "conf/selector").glob("*.yaml"))
    pages = ["selectors/index.md", *({name: f"selectors/{name}.md"} for name in names)]
    config.nav = [{"Selectors": pages} if "Selectors" in entry else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace('="docs/', '="')  # of pictures
        here = [line for line in text.split("\n") if "img.shields.io" not in line]  # loads nothing
        files.append(File.generated(config, page, content="\n".join(here)))
    notebook = notebook_page(ROOT / "docs" / NOTEBOOK)
    files.append(File.generated(config, "notebook.md", content=notebook))
    selectors = {path.stem: selector_page(path) for path in sorted((ROOT / "conf/selector").glob("*.yaml"))}
    for name, (_, text) in selectors.items():
        files.append(File.generated(config, f"selectors/{name}.md", content=text))
    lines = [f"- [`{name}`]({name}.md): {first}" for name, (first, _) in selectors.items()]
    index = "# Selectors\n\nEach is one word on the command line: `gtp-exp selector=NAME`.\n\n"
    files.append(File.generated(config, "selectors/index.md", content=index + "\n".join(lines) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where the pages lie on the site; a link to code becomes the name of its file."""
    found = {source: page for page, source in PAGES.items()}

    def place(match: re.Match[str]) -> str:
        text, target = match.group(1), match.group(2)
        path, _, anchor = target.removeprefix("../").removeprefix("docs/").partition("#")
        path = "notebook.md" if path == NOTEBOOK else found.get(path, path)
        there = path in (*found.values(), "notebook.md") or (ROOT / "docs" / path).exists()
        if path.endswith((".md", ".svg")) and there:
            return f"[{text}]({path}{'#' + anchor if anchor else ''})"
        return text if text.startswith("`") or "/" in text else f"{text} (`{path}`)"

    depth = page.file.src_uri.count("/")
    return markdown if depth else re.sub(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)]+)\)", place, markdown)


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown: its text, its code, and what the code printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            printed = output.get("text") or output.get("data", {}).get("text/plain", "")
            parts.append(f"```text\n{''.join(printed).rstrip()}\n```")
    return "\n\n".join(parts) + f"\n\nThe notebook itself: `docs/{path.name}`\n"


def selector_page(path: Path) -> tuple[str, str]:
    """Return the first sentence of a selector and its whole page: formula, source, deviations, options."""
    text = path.read_text(encoding="utf-8")
    target = _target(path)
    module = _module(target)
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    title, _, rest = docstring.partition("\n\n")
    title = " ".join(title.split())
    lines = [f"# {path.stem}", "", title, "", rest, "", "## Options", ""]
    lines += [f"`gtp-exp selector={path.stem}`, each value by `selector.KEY=VALUE`:", ""]
    lines += ["```yaml", text.rstrip(), "```", "", f"Source: `{module.relative_to(ROOT)}`"]
    return title, "\n".join(lines) + "\n"


def _target(path: Path) -> str:
    """Return the class of an option, its own or that of the option which it is a variant of."""
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "_target_" in node:
        return node["_target_"]
    (base,) = [name for name in node["defaults"] if isinstance(name, str) and name != "_self_"]
    return _target(path.with_name(f"{base}.yaml"))


def _module(target: str) -> Path:
    """Return the file that holds a class."""
    module = target.rpartition(".")[0].replace(".", "/")
    for folder in (ROOT, ROOT / "baselines", ROOT / "benchmarks"):
        for file in (folder / f"{module}.py", folder / module / "__init__.py"):
            if file.exists():
                return file
    raise FileNotFoundError(f"no file holds {target}")
