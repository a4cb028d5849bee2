"""The Python reference names what the guide has its readers import."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def imported() -> Iterator[tuple[str, str]]:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for snippet in SNIPPET.findall(page.read_text(encoding="utf-8")):
            for node in ast.walk(ast.parse(snippet)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlvec"):
                    yield from ((node.module or "", name.name) for name in node.names)


def documented() -> Iterator[Any]:
    for name in re.findall(r"automodule:: (\S+)", REFERENCE):
        module = importlib.import_module(name)
        yield module
        for own in getattr(module, "__all__", vars(module)):
            yield getattr(module, own)
    for own, name in re.findall(r"py:data:: (\S+)\n +:module: (\S+)", REFERENCE):
        yield getattr(importlib.import_module(name), own)


@pytest.mark.parametrize(("module", "name"), sorted(set(imported())))
def test_what_is_imported_has_an_entry(module: str, name: str) -> None:
    package = importlib.import_module(module)
    found = getattr(package, name, None) or importlib.import_module(f"{module}.{name}")
    assert any(found is entry for entry in documented())
