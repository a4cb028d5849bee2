"""The documentation strings of Python's standard library, read from its source files.

Nothing is imported: the files are parsed, so no module of the library runs.
"""

from __future__ import annotations

import ast
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SHORTEST = 20
"""Characters below which a documentation string says nothing."""

_LONGEST = 600
"""Characters kept of one: its first paragraphs."""

_PUBLIC_NAMES = {"_pydatetime": "datetime", "_pydecimal": "decimal", "_pyio": "io"}
"""Modules written in C whose documentation is in a twin written in Python."""

_NOT_FOR_USERS = {"idlelib", "lib2to3", "test", "this", "turtledemo"}

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented module, class or function."""

    name: str
    """Qualified, e.g. ``textwrap.TextWrapper.fill``."""

    kind: str
    """``module``, ``class`` or ``function``."""

    signature: str
    """Parameters in parentheses; empty for a module."""

    body: str
    """The first paragraphs of its documentation."""


def read_library(folder: Path | None = None) -> list[Entry]:
    """Return everything public that is documented in the standard library, sorted by name.

    :param folder: of the library; None is the one of this interpreter.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    found: dict[str, Entry] = {}
    for module, path in _modules(folder):
        for entry in _read(module, path):
            found.setdefault(entry.name, entry)
    return [found[name] for name in sorted(found)]


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        top = parts[0]
        if top not in sys.stdlib_module_names or top in _NOT_FOR_USERS:
            continue
        parts = (_PUBLIC_NAMES.get(top, top), *parts[1:])
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") or part in ("test", "tests") for part in parts):
            yield ".".join(parts), path


def _read(module: str, path: Path) -> Iterator[Entry]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About escapes in somebody else's strings.
            tree = ast.parse(path.read_bytes())
    except SyntaxError:  # A template, or a test of the parser.
        return
    if body := _documentation(tree):
        yield Entry(module, "module", "", body)
    yield from _definitions(module, tree.body)


def _definitions(prefix: str, statements: list[ast.stmt]) -> Iterator[Entry]:
    for node in statements:
        if not isinstance(node, _Definition) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        is_class = isinstance(node, ast.ClassDef)
        if body := _documentation(node):
            yield Entry(name, "class" if is_class else "function", _signature(node), body)
        if is_class:
            yield from _definitions(name, node.body)


def _signature(node: _Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return ""
    return f"({ast.unparse(node.args)})"


def _documentation(node: ast.Module | _Definition) -> str | None:
    """Return the first paragraphs, as many as fit."""
    text = ast.get_docstring(node, clean=False)
    text = inspect.cleandoc(text.replace("\0", "")) if text else ""
    if len(text) < _SHORTEST:
        return None
    kept, *others = text.split("\n\n")
    for paragraph in others:
        if len(kept) + 2 + len(paragraph) > _LONGEST:
            break
        kept += "\n\n" + paragraph
    return kept[:_LONGEST]
