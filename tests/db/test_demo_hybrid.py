"""The hybrid mode of the demo, with a small corpus, and with the real one."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from sqlalchemy import Engine, NullPool, create_engine, text
from typer.testing import CliRunner

from sqlvec.cli.app import app
from sqlvec.demo import models
from sqlvec.demo.corpus import Entry, read_library
from sqlvec.demo.hybrid import MODEL, HybridDemo
from tests.db.server import sqlalchemy_url

MATTERS = [
    first + second for first in ("bak", "dol", "fin", "gur") for second in ("em", "ib", "ost")
]
SIDES = [first + second for first in ("kl", "pr", "tw", "sn") for second in ("ax", "eld", "omp")]
CORPUS = [
    Entry(f"{matter}.{matter}_{side}", "function", "()", f"About {matter} and\n{side} [bold].")
    for matter in MATTERS
    for side in SIDES
]


class WordModel:
    """One fixed random direction per word."""

    name = "words"
    dimensions = 64
    batch = 100

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
    demo = HybridDemo(engine, WordModel(), Console(file=shown, width=120))
    demo.prepare(CORPUS)
    demo.answer("dolib' [bold] twomp")
    demo.answer("nosuch matter anywhere")
    output = shown.getvalue()
    found, nothing = output.split("\nnosuch matter anywhere\n")

    assert "144 entries; those with a relevance below 0.5 are not shown" in found
    assert "dolib' [bold] twomp" in found
    hits = re.findall(
        r"^([01]\.\d{3})\s+(0\.\d\d|1\.00)\s+(?:\d+|–)\s+(?:\d+|–)\s+(dolib\S+)\s+About .*\[bold\]\.",
        found,
        re.M,
    )
    assert len(hits) == 5
    assert hits[0][2] == "dolib.dolib_twomp"
    assert all(float(relevance) >= 0.5 for _, relevance, _ in hits)
    assert re.search(r"hybrid \d+\.\d ms · words \d+\.\d ms · vector \d+\.\d ms", found)
    assert re.search(r"^nothing relevant: 0 of \d+ rows .* of 0\.5 or more; the best", nothing)
    assert re.search(r"^without the cut \S+ would come first, of relevance 0\.", nothing, re.M)
    with engine.connect() as connection:
        pasted = [connection.execute(text(shown_sql(part))).all() for part in (found, nothing)]
        waiting = connection.scalar(
            text(
                "SELECT count(*) FROM sqlvec_demo.hybrid_entry"
                " WHERE embedding_binary IS NULL OR words IS NULL"
            )
        )
        fitted = connection.execute(text("SELECT name, leg, brier FROM sqlvec.relevance_model"))
        assert [tuple(row) for row in fitted] == [(MODEL, "vector", None)]
    assert [row.name for row in pasted[0]] == [name for _, _, name in hits]
    assert pasted[1] == []
    assert waiting == 0


def shown_sql(output: str) -> str:
    found = re.search(r"^SELECT .*?;", output, re.M | re.S)
    assert found is not None
    return found[0].replace("::", r"\:\:")


def test_names_are_whole_on_a_narrow_terminal(engine: Engine) -> None:
    shown = io.StringIO()
    demo = HybridDemo(engine, WordModel(), Console(file=shown, width=55))
    demo.prepare(CORPUS)
    demo.prepare(CORPUS)  # A second start makes everything anew.
    demo.answer("dolib twomp")
    assert re.search(r"^score  relevance  words  vector  entry\s*$", shown.getvalue(), re.M)
    assert "  dolib.dolib_twomp" in shown.getvalue()


def test_command(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    monkeypatch.setattr("sqlvec.cli.demo.read_library", lambda: CORPUS)
    monkeypatch.setitem(models.MODELS, "words", WordModel)
    arguments = ["demo", "--dsn", database, "--mode", "hybrid", "--model", "words"]
    result = CliRunner().invoke(app, [*arguments, "finem snomp"])
    assert result.exit_code == 0, result.output
    assert "finem.finem_snomp" in result.output


def part_of_library(folder: Path) -> Path:
    """Copy the modules with the answers and every fourth of the others."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    answers = [path for path in modules if path.stem in ("textwrap", "shutil", "difflib")]
    for path in {*answers, *modules[::4]}:
        shutil.copy(path, folder)
    return folder


def test_real_corpus(engine: Engine, tmp_path: Path) -> None:
    if importlib.util.find_spec("wordllama") is None:
        pytest.skip("wordllama is not installed")
    shown = io.StringIO()
    demo = HybridDemo(engine, models.MODELS["wordllama"](), Console(file=shown, width=120))
    demo.prepare(read_library(part_of_library(tmp_path)))
    *answered, unanswered = demo.questions
    for question in demo.questions:
        demo.answer(question)
    output = shown.getvalue()
    for question, name in zip(
        answered, ("textwrap.wrap", "shutil.rmtree", "difflib.SequenceMatcher"), strict=True
    ):
        answer = output.split(f"\n{question}\n")[1].split("\nmedian")[0]
        assert f" {name} " in answer
    answer = output.split(f"\n{unanswered}\n")[1]
    assert re.search(r"^nothing relevant: 0 of \d+ rows are left, .* of 0\.5 or more", answer)
