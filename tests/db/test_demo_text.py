"""The text mode of the demo, with a small corpus."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console
from sqlalchemy import Engine, NullPool, create_engine, text
from typer.testing import CliRunner

from sqlvec.cli.app import app
from sqlvec.demo.corpus import Entry
from sqlvec.demo.text import TextDemo
from tests.db.server import sqlalchemy_url

WORDS = ("wrap", "csv", "gzip", "tree", "thread", "date", "socket", "regex")
CORPUS = [
    Entry(f"module.{first}_{second}", "function", "()", f"About {first} and\n{second} [bold].")
    for first in WORDS
    for second in WORDS
]


@pytest.fixture
def database(tmp_database: Callable[..., str], bare_template: str) -> str:
    """Return a database without sqlvec: the demo installs it."""
    return tmp_database(bare_template)


@pytest.fixture
def engine(database: str) -> Engine:
    return create_engine(sqlalchemy_url(database), poolclass=NullPool)


def test_tour(engine: Engine) -> None:
    shown = io.StringIO()
    demo = TextDemo(engine, Console(file=shown, width=100, force_terminal=True, no_color=True))
    demo.prepare(CORPUS)
    demo.prepare(CORPUS)  # A second start makes everything anew.
    demo.answer("gzip's [and] csv")
    demo.answer("nosuch words")
    demo.answer("the of")
    demo.answer("-gzip")
    output = shown.getvalue()

    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert "64 entries of 7.0 words" in plain
    assert "gzip's [and] csv" in plain
    assert "nothing matches\n" in plain
    assert plain.count("nothing matches: the query asks for nothing\n") == 2
    assert '"phrases", +required, -excluded and prefix* work' in plain
    bold = r"\x1b\[1m(?:gzip|csv)\x1b\[0m"
    assert re.search(rf"module\.gzip_csv\s+About {bold} and {bold} \[bold\]", output)
    assert re.search(r"BM25 \d+\.\d ms · ts_rank_cd \d+\.\d ms", plain)
    statement = re.search(r"^SELECT .*?;", plain, re.M | re.S)
    assert statement is not None
    with engine.connect() as connection:
        pasted = connection.execute(text(statement[0].replace("::", r"\:\:"))).all()
    assert [row.name for row in pasted] == re.findall(r"^\s*\d+\.\d\d\s+(module\S+)", plain, re.M)


def test_command(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    monkeypatch.setattr("sqlvec.cli.demo.read_library", lambda: CORPUS)
    monkeypatch.setattr("sqlvec.cli.demo.MODELS", {"wordllama": None})  # No model is loaded.
    arguments = ["demo", "--dsn", database, "--mode", "text", "regex of a date"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "module.regex_date" in result.output


def test_command_refuses_an_unknown_mode(database: str) -> None:
    result = CliRunner().invoke(app, ["demo", "--dsn", database, "--mode", "nosuch"])
    assert result.exit_code == 2
    assert "none of vector, text, multivector" in result.output
