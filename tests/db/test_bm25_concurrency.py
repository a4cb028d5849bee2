"""Sessions that write, search and analyze at the same time.

``SQLVEC_CONCURRENCY_SECONDS`` sets for how long; 8 if it does not.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg

from tests.db import documents
from tests.db.documents import Analyzer, Index, Query, Statistics

SECONDS = float(os.environ.get("SQLVEC_CONCURRENCY_SECONDS", "8"))
SESSIONS = 16
ROWS = 2000
SEARCH = "SELECT (hit).id, score, complete FROM sqlvec.bm25_search(NULL::doc, 'body', %s, k => %s)"


def body(random: np.random.Generator) -> str:
    ranks = np.minimum(random.zipf(1.3, int(random.integers(1, 60))), 3000)
    return " ".join(f"w{rank}" for rank in ranks)


class Session:
    """One application that does a little of everything.

    :param number: of the session; its new rows have keys that no other session makes.
    """

    def __init__(self, dsn: str, number: int) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._random = np.random.default_rng([7, number])
        self._next = 1_000_000 * (number + 1)
        self.done: Counter[str] = Counter()

    def run(self, stop: threading.Event) -> Counter[str]:
        actions: list[tuple[Callable[[], None], float]] = [
            (self._insert, 0.15),
            (self._update, 0.3),
            (self._delete, 0.1),
            (self._search, 0.4),
            (self._move, 0.05),
        ]
        steps, shares = zip(*actions, strict=True)
        with self._connection:
            while not stop.is_set():
                step = steps[self._random.choice(len(steps), p=shares)]
                step()
                self.done[step.__name__] += 1
        return self.done

    def _any_key(self) -> int:
        """Choose a row that others write too."""
        return int(self._random.integers(1, ROWS + 1))

    def _insert(self) -> None:
        rows = [(self._next + i, body(self._random)) for i in range(5)]
        self._next += 5
        with self._connection.cursor() as cursor:
            cursor.executemany("INSERT INTO doc (id, body) VALUES (%s, %s)", rows)

    def _update(self) -> None:
        text = None if self._random.random() < 0.05 else body(self._random)
        self._connection.execute("UPDATE doc SET body = %s WHERE id = %s", [text, self._any_key()])

    def _move(self) -> None:
        """Change two rows in one transaction, in the order of their keys as applications should."""
        with self._connection.transaction():
            for key in sorted((self._any_key(), self._any_key())):
                self._connection.execute(
                    "UPDATE doc SET body = %s WHERE id = %s", [body(self._random), key]
                )

    def _delete(self) -> None:
        self._connection.execute("DELETE FROM doc WHERE id = %s", [self._any_key()])
        self._connection.execute(
            "INSERT INTO doc (id, body) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [self._any_key(), body(self._random)],
        )

    def _search(self) -> None:
        words = body(self._random).split()[:8]
        found = self._connection.execute(SEARCH, [" ".join(words), 10]).fetchall()
        scores = [score for _, score, _ in found]
        assert scores == sorted(scores, reverse=True)
        assert len({key for key, _, _ in found}) == len(found)


def analyze(dsn: str, stop: threading.Event) -> int:
    """Refresh the statistics and re-encode, again and again."""
    times = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not stop.is_set():
            connection.execute("CALL sqlvec.analyze_bm25('doc', drift => 0)")
            times += 1
            if times % 4 == 0:
                connection.execute("VACUUM doc")
            stop.wait(0.2)
    return times


@dataclass(frozen=True)
class Stored(Statistics):
    """The statistics that the database works with, whatever they were counted from."""

    connection: psycopg.Connection[Any]

    @classmethod
    def of_table(cls, connection: psycopg.Connection[Any]) -> Stored:
        row = connection.execute(
            "SELECT documents, avgdl FROM sqlvec.bm25_health WHERE relation = 'doc'::regclass"
        ).fetchone()
        assert row is not None
        return cls(row[0], row[1], {}, connection)

    def weights(self, query: Query, index: Index) -> dict[str, float]:
        row = self.connection.execute(
            "SELECT sqlvec.bm25_query(NULL::doc, 'body', %s)::text", [query.text]
        ).fetchone()
        assert row is not None
        elements = row[0].split("}")[0].removeprefix("{").split(",")
        values = {
            int(place): float(value) for place, _, value in (e.partition(":") for e in elements)
        }
        return {lexeme: values[dimension(lexeme)] for lexeme in query.scored}


def dimension(lexeme: str) -> int:
    """Return where a term stands in a sparsevec."""
    return 1 + int(hashlib.md5(lexeme.encode()).hexdigest()[:15], 16) % 10**9


def check(db: psycopg.Connection[Any], statistics: Statistics) -> None:
    """Compare searches with brute force."""
    index = Index(documents.read(db, "doc"), statistics.avgdl)
    analyzer = Analyzer(db, "simple")
    random = np.random.default_rng(2)
    for _ in range(100):
        query = analyzer.words(" ".join(body(random).split()[:8]))
        found = db.execute(SEARCH, [query.text, 20]).fetchall()
        documents.check([row[:2] for row in found], index.scores(query, statistics), 20)


def test_sixteen_sessions(tmp_database: Any) -> None:
    dsn = tmp_database()
    random = np.random.default_rng(1)
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("CREATE TABLE doc (id int PRIMARY KEY, body text)")
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        with db.cursor().copy("COPY doc (id, body) FROM STDIN") as copy:
            for key in range(1, ROWS + 1):
                copy.write_row((key, body(random)))
        db.execute("CALL sqlvec.analyze_bm25('doc')")

        stop = threading.Event()
        sessions = [Session(dsn, number) for number in range(SESSIONS)]
        with ThreadPoolExecutor(SESSIONS + 1) as threads:
            analyses = threads.submit(analyze, dsn, stop)
            running = [threads.submit(session.run, stop) for session in sessions]
            tasks: list[Future[Any]] = [analyses, *running]
            end = time.monotonic() + SECONDS
            while time.monotonic() < end and not any(each.done() for each in tasks):
                time.sleep(0.1)
            stop.set()
            # An error of any session is raised here: a deadlock, or one that none should see.
            done = sum((each.result() for each in running), Counter())
            times = analyses.result()
        print(f"{SECONDS:g} s: {dict(done)}, analyzed {times} times")
        assert times > 0 and min(done.values()) > 0 and len(done) == 5

        # The last analysis ran while others wrote: every row has the weights of what it left.
        check(db, Stored.of_table(db))
        db.execute("CALL sqlvec.analyze_bm25('doc', drift => 0)")
        statistics = Statistics.of(documents.read(db, "doc").values())
        assert Stored.of_table(db).documents == statistics.documents
        check(db, statistics)
