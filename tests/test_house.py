"""Rules of the source tree that a reader relies on: which way imports point, how large a piece may get."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "gtp_exp": ROOT / "gtp_exp",
    "gtp_baselines": ROOT / "baselines" / "gtp_baselines",
    "gtp_benchmarks": ROOT / "benchmarks" / "gtp_benchmarks",
    "hydra_plugins": ROOT / "hydra_plugins",
}
MOST_LOOSE_MODULES = 14
MOST_LINES = 80
MOST_PARAMETERS = 8
LARGEST_FILE = 100_000  # bytes

Graph = Mapping[str, set[str]]


def module_files() -> dict[str, Path]:
    """Return the file of every module by its dotted name; a package's is its __init__.py."""
    files = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            files[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return files


FILES = module_files()


@cache
def syntax_tree(module: str) -> ast.Module:
    """Return the parsed source of a module, which every process that collects the tests can do without."""
    return ast.parse(FILES[module].read_text())


def is_for_type_checkers(node: ast.AST) -> bool:
    """Say whether a statement is `if TYPE_CHECKING:`, whose imports never happen."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_statements(node: ast.AST, *, in_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports below a node: those made on loading the module and, if asked, those in functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif is_for_type_checkers(child):
            continue
        elif in_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from import_statements(child, in_functions=in_functions)


def imported_names(module: str, *, in_functions: bool) -> set[str]:
    """Return the dotted names of the modules, ours or not, that one module imports."""
    names: set[str] = set()
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for statement in import_statements(syntax_tree(module), in_functions=in_functions):
        if isinstance(statement, ast.Import):
            names.update(alias.name for alias in statement.names)
            continue
        base = statement.module or ""
        if statement.level:
            parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
            base = ".".join([*parents, *filter(None, [base])])
        for alias in statement.names:
            submodule = f"{base}.{alias.name}"
            names.add(submodule if submodule in FILES else base)
    return names


def imports_between_files(*, in_functions: bool) -> Graph:
    """Return which files of gtp_exp import which others of it."""
    modules = [name for name in FILES if name.split(".")[0] == "gtp_exp"]
    return {
        name: (imported_names(name, in_functions=in_functions) & set(modules)) - {name} for name in modules
    }


def folder_of(module: str) -> str:
    """Return the folder directly below gtp_exp that holds a module, or the module itself where it is loose.

    The loose modules count one by one: they are the pipeline's steps, not a folder.
    """
    parts = module.split(".")
    if len(parts) == 2 and FILES[module].name != "__init__.py":
        return module
    return ".".join(parts[:2])


def imports_between_folders(*, in_functions: bool) -> Graph:
    """Return which folders of gtp_exp import which others of it."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module, imported in imports_between_files(in_functions=in_functions).items():
        graph[folder_of(module)] |= {folder_of(name) for name in imported} - {folder_of(module)}
    return graph


def circles(graph: Graph) -> list[str]:
    """Return the groups of nodes of which each reaches every other, as one line each."""

    def reachable(start: str) -> set[str]:
        reached: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            if (node := waiting.pop()) not in reached:
                reached.add(node)
                waiting.extend(graph.get(node, ()))
        return reached

    reach = {node: reachable(node) for node in graph}
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in graph if a in reach[a]}
    return sorted(" <-> ".join(sorted(group)) for group in groups)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function of the three packages with the place to look for it."""
    for module in FILES:
        for node in ast.walk(syntax_tree(module)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{FILES[module].relative_to(ROOT)}:{node.lineno} {node.name}", node


def circles_between_files() -> Iterable[str]:
    """No file of gtp_exp imports, through others, itself."""
    return circles(imports_between_files(in_functions=False))


def circles_between_files_with_functions() -> Iterable[str]:
    """The same, with the imports that functions make when they are called."""
    return circles(imports_between_files(in_functions=True))


def circles_between_folders() -> Iterable[str]:
    """No folder of gtp_exp imports, through others, itself."""
    return circles(imports_between_folders(in_functions=True))


def imports_of_competitors_or_benchmarks() -> Iterable[str]:
    """gtp_exp reaches baselines and benchmarks by `_target_` only."""
    for module in FILES:
        if module.split(".")[0] == "gtp_exp":
            for name in imported_names(module, in_functions=True):
                if name.split(".")[0] in ("gtp_baselines", "gtp_benchmarks"):
                    yield f"{module} imports {name}"


def torch_in_the_leaderboard() -> Iterable[str]:
    """The leaderboard is computed from results.json files, on a machine that may have no torch."""
    for module in FILES:
        if module.startswith("gtp_exp.leaderboard"):
            for name in imported_names(module, in_functions=True):
                if name.split(".")[0] == "torch":
                    yield f"{module} imports {name}"


def loose_modules() -> Iterable[str]:
    """A newcomer sees few files at the top of gtp_exp."""
    loose = sorted(path.name for path in PACKAGES["gtp_exp"].glob("*.py"))
    return loose if len(loose) > MOST_LOOSE_MODULES else ()


def long_functions() -> Iterable[str]:
    """A function fits on a screen."""
    for place, node in functions():
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MOST_LINES:
            yield f"{place}: {lines} lines"


def long_parameter_lists() -> Iterable[str]:
    """A call can be read; constructors are excepted, because their arguments are named options."""
    for place, node in functions():
        arguments = node.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        if node.name not in ("__init__", "__new__"):
            count = sum(name not in ("self", "cls") for name in names)
            if count > MOST_PARAMETERS:
                yield f"{place}: {count} parameters"


def public_names_without_a_docstring() -> Iterable[str]:
    """What others may call says what it is for."""
    for module in FILES:
        for node in syntax_tree(module).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                if not node.name.startswith("_") and not ast.get_docstring(node):
                    yield f"{FILES[module].relative_to(ROOT)}:{node.lineno} {node.name}"


def broken_links() -> Iterable[str]:
    """A link of the documentation to a file of the repository leads somewhere."""
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / link).exists():
                yield f"{page.relative_to(ROOT)}: {link}"


def large_files() -> Iterable[str]:
    """Nothing under version control is large: what was added by mistake stays in the history for good."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):  # none where the source came without git
        if (ROOT / name).is_file() and (size := (ROOT / name).stat().st_size) > LARGEST_FILE:
            yield f"{name}: {size:,} bytes"


RULES = [
    circles_between_files,
    circles_between_files_with_functions,
    circles_between_folders,
    imports_of_competitors_or_benchmarks,
    torch_in_the_leaderboard,
    loose_modules,
    long_functions,
    long_parameter_lists,
    public_names_without_a_docstring,
    broken_links,
    large_files,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps(rule):
    broken = list(rule())
    assert not broken, f"{rule.__doc__}\n" + "\n".join(broken)


def test_a_circle_is_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(graph) == ["b <-> c"]
    assert circles({"a": {"b"}, "b": set()}) == []
