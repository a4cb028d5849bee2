"""The statements in the docs run, and the reference is the one of this release."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from tests.db.server import sqlalchemy_url
from tests.db.test_readme import statements

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sql")])
def test_sql(tmp_database: Callable[..., str], page: str) -> None:
    with psycopg.connect(tmp_database(), autocommit=True) as connection:
        for script in blocks(page, "sql"):
            for statement in statements(script):
                connection.execute(statement.encode())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python(tmp_database: Callable[..., str], page: str) -> None:
    url = sqlalchemy_url(tmp_database()).render_as_string(hide_password=False)
    for example in blocks(page, "python"):
        code = example.replace("postgresql+psycopg://postgres@localhost/test", url)
        names: dict[str, Any] = {"__name__": "docs"}
        exec(compile(code, page, "exec", dont_inherit=True), names)
        if engine := names.get("engine"):
            engine.dispose()


def test_links() -> None:
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_reference(dsn: str) -> None:
    """``python docs/reference.py DSN`` writes it."""
    reference = load_reference()
    assert reference.PAGE.read_text("utf-8") == reference.page(dsn)


def load_reference() -> ModuleType:
    spec = spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
