"""Imports inside the package point one way: from higher layers to lower ones."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sqlvec"

# From the bottom up. Modules of one layer do not import each other.
LAYERS: list[set[str]] = [
    {"errors"},
    {"identifiers", "metrics"},
    {"encoders"},
    {"catalog", "elements", "embedded", "operators", "relevance", "types"},
    {"ddl", "functions"},
    {"schema"},
    {"search"},
    {"bulk_backfill"},
    {"fit", "manage"},
    {"terminal"},
    {"demo"},
    {"alembic", "cli", "integrations"},
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}

# What tests of this folder may use: SQLAlchemy of either version does not change what it computes.
STANDALONE = {"demo", "embedded", "encoders", "errors", "fit", "relevance"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a module imports, wherever in its text."""
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_lower_layers(path: Path) -> None:
    own = _layer(path)
    assert own in HEIGHT, f"sqlvec.{own} has no place in LAYERS"
    for name in _imports(path):
        if name.split(".")[0] != "sqlvec":
            continue
        used = name.split(".")[1]
        assert used in HEIGHT, f"{name} is taken from the top of the package"
        assert used == own or HEIGHT[used] < HEIGHT[own], f"sqlvec.{own} must not import {name}"


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if _layer(path) == "encoders"],
    ids=lambda path: path.name,
)
def test_encoders_need_only_numpy(path: Path) -> None:
    allowed = {"sqlvec", "numpy", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in _imports(path)} <= allowed


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.glob("test_*.py")), ids=lambda p: p.name
)
def test_what_stands_alone(path: Path) -> None:
    names = [name.split(".") for name in _imports(path)]
    assert "sqlalchemy" not in {name[0] for name in names}
    assert {name[1] for name in names if name[0] == "sqlvec"} <= STANDALONE


def test_every_public_module_is_placed() -> None:
    assert {_layer(path) for path in MODULES} <= HEIGHT.keys()
