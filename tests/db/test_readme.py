"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.db.server import sqlalchemy_url

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)


def statements(script: str) -> list[str]:
    """Split a script whose strings hold no semicolons."""
    without_comments = re.sub(r"^\s*--.*$", "", script, flags=re.M)
    return [part.strip() for part in without_comments.split(";") if part.strip()]


def test_sql(tmp_database: Callable[..., str]) -> None:
    answers: list[list[tuple[object, ...]]] = []
    with psycopg.connect(tmp_database(), autocommit=True) as connection:
        for script in blocks("sql"):
            for statement in statements(script):
                cursor = connection.execute(statement.encode())
                if cursor.description:
                    answers.append(cursor.fetchall())
        planned = connection.execute(
            "SELECT note FROM sqlvec.plan_index('doc', 'embedding') WHERE name = 'embedding_binary'"
        ).fetchone()
    hits, explained, words, pages, both = answers
    assert [row[:2] for row in hits] == [(2, "prune the apple tree"), (1, "sow carrots")]
    assert ("metric", "cosine") in explained
    assert [(row[0], row[2]) for row in words] == [
        (3, "bake an <b>apple</b> <b>pie</b>"),
        (2, "prune the <b>apple</b> tree"),
    ]
    assert [(row[0], round(float(str(row[1])), 2)) for row in pages] == [(2, 1.8), (1, 1.0)]
    assert [(row[0], row[2:]) for row in both] == [(2, (1, 1)), (1, (None, 2))]
    assert planned == ("is there already",)


def test_python(tmp_database: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    url = sqlalchemy_url(tmp_database()).render_as_string(hide_password=False)
    (example,) = blocks("python")
    shown = "postgresql+psycopg://postgres@localhost/test"
    assert shown in example
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(example.replace(shown, url), str(README), "exec", dont_inherit=True), names)
    assert capsys.readouterr().out == "prune the apple tree 0.07\n"
    names["engine"].dispose()  # type: ignore[attr-defined]
