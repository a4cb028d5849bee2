"""What every tour shows."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pytest
from rich.console import Console
from sqlalchemy import create_engine

from sqlvec.demo.corpus import Entry
from sqlvec.demo.tour import Tour

STATEMENT = (
    "SELECT round(score::numeric, 2) AS score, (hit).name,\n"
    "       sqlvec.bm25_headline(hit, 'body', 'how to wrap   long lines [b]of[/b] text')\n"
    "FROM sqlvec.bm25_search(NULL::sqlvec_demo.entry, 'name_body_bm25', 'text', k => 5);"
)


class Shown(Tour):
    """A tour that answers with its question."""

    def prepare(self, corpus: Sequence[Entry]) -> None:
        pass

    def answer(self, question: str) -> None:
        self._show_sql(question)


@pytest.mark.parametrize("terminal", [False, True])
def test_sql_is_neither_cropped_nor_wrapped(terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=60, force_terminal=terminal)
    Shown(create_engine("postgresql+psycopg://"), console).answer(STATEMENT)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    assert plain == STATEMENT + "\n"
