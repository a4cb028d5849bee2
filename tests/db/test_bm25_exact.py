"""sqlvec.bm25_search against brute force on the tsvectors that the server stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import bm25s
import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.db import documents
from tests.db.documents import Analyzer, Index, Query, Statistics

# Stop words, words of one stem, words that most documents hold and words that few do.
WORDS = [
    *("apple", "apples", "Apple", "banana", "run", "running", "runs", "the", "and", "cherry"),
    *("fig", "grapes", "kiwi", "lemon", "mango", "naïve", "über", "42", "nut", "olive"),
]
COMMON = WORDS[:8]
UNKNOWN = "zzyzx"


@dataclass(frozen=True)
class Table:
    """A table with BM25 of its text.

    :param arguments: further arguments of add_bm25.
    """

    name: str
    config: str = "english"
    k1: float = documents.K1
    b: float = documents.B
    arguments: str = ""


TABLES = [
    Table("doc"),
    Table("verbatim", "simple", arguments=", config => 'simple'"),
    Table("short", "simple", 0.9, 0.0, ", config => 'simple', k1 => 0.9, b => 0"),
    Table("long", "english", 2.0, 1.0, ", k1 => 2, b => 1"),
]


class Searched:
    """A table with the statistics of its last analysis."""

    def __init__(self, db: psycopg.Connection[Any], table: Table) -> None:
        self.db = db
        self.table = table
        self.analyzer = Analyzer(db, table.config)
        self.statistics = Statistics(0, 0.0, {})
        self.avgdl = 100.0  # what weights are made with before there is a document

    def fill(self, texts: Sequence[str | None]) -> None:
        self.db.execute(f"TRUNCATE {self.table.name}")
        self.insert(1, texts)

    def insert(self, first: int, texts: Sequence[str | None]) -> None:
        rows = [(key, tenant(key), tag(key), text) for key, text in enumerate(texts, first)]
        with self.db.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {self.table.name} VALUES (%s, %s, %s, %s)", rows)

    def analyze(self) -> None:
        """Refresh the statistics and the weights, here and there."""
        self.db.execute(f"CALL sqlvec.analyze_bm25('{self.table.name}', drift => 0)")
        self.statistics = Statistics.of(documents.read(self.db, self.table.name).values())
        self.avgdl = self.statistics.avgdl or self.avgdl

    def index(self) -> Index:
        stored = documents.read(self.db, self.table.name)
        expected = f"to_tsvector('{self.table.config}', t.body)"
        assert stored == documents.read(self.db, self.table.name, expected)
        return Index(stored, self.avgdl, self.table.k1, self.table.b)

    def check(
        self, index: Index, query: Query, k: int = 10, condition: Condition | None = None
    ) -> None:
        """Compare one search with brute force."""
        condition = condition or CONDITIONS[0]
        found = search(self.db, self.table.name, query.text, k=k, **condition.arguments)
        scores = index.scores(query, self.statistics, condition.keep)
        documents.check([row[:2] for row in found], scores, k)
        assert all(row[2] for row in found)
        # Documents of the same lexemes have the same score to the last bit: the key decides.
        order = [(-row[1], row[0]) for row in found]
        assert order == sorted(order)
        assert (
            search_keys(self.db, self.table.name, query.text, k=k, **condition.arguments) == found
        )


@dataclass(frozen=True)
class Condition:
    """A filter as the search takes it and in Python."""

    arguments: dict[str, Any]
    keep: Callable[[int], bool]


def tenant(key: int) -> int:
    return key % 3


def tag(key: int) -> str:
    return "ab"[key // 2 % 2]


CONDITIONS = [
    Condition({}, lambda key: True),
    Condition({"filter": json.dumps({"tenant": 1})}, lambda key: tenant(key) == 1),
    Condition(
        {"filter": json.dumps({"tenant": {"$in": [0, 2]}, "tag": "a"})},
        lambda key: tenant(key) != 1 and tag(key) == "a",
    ),
    Condition({"where_sql": "id % 2 = 0"}, lambda key: key % 2 == 0),
    Condition(
        {"where_sql": "tag = ($1)[1] OR id < 3", "params": ["b"]},
        lambda key: tag(key) == "b" or key < 3,
    ),
    Condition(
        {"filter": json.dumps({"tag": "a"}), "where_sql": "tenant > 0"},
        lambda key: tag(key) == "a" and tenant(key) > 0,
    ),
    Condition({"filter": json.dumps({"tenant": 9})}, lambda key: False),
]


def search(
    db: psycopg.Connection[Any], table: str, text: str, column: str = "body", **arguments: Any
) -> list[tuple[int, float, bool]]:
    named = "".join(f", {name} => %({name})s" for name in arguments)
    return db.execute(
        f"SELECT (hit).id, score, complete FROM sqlvec.bm25_search(NULL::{table}, %(column)s, %(text)s{named})",
        {"column": column, "text": text, **arguments},
    ).fetchall()


def search_keys(
    db: psycopg.Connection[Any], table: str, text: str, **arguments: Any
) -> list[tuple[int, float, bool]]:
    named = "".join(f", {name} => %({name})s" for name in arguments)
    return db.execute(
        f"SELECT key, score, complete FROM sqlvec.bm25_search_keys(NULL::{table}, 'body', %(text)s, key => NULL::int, key_column => 'id'{named})",
        {"text": text, **arguments},
    ).fetchall()


@pytest.fixture(scope="module")
def db(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module", params=TABLES, ids=lambda table: table.name)
def searched(request: pytest.FixtureRequest, db: psycopg.Connection[Any]) -> Searched:
    table: Table = request.param
    db.execute(f"CREATE TABLE {table.name} (id int PRIMARY KEY, tenant int, tag text, body text)")
    db.execute(f"CALL sqlvec.add_bm25('{table.name}', 'body'{table.arguments})")
    return Searched(db, table)


word = st.sampled_from([*WORDS, *COMMON * 4])
text = st.one_of(
    st.lists(word, max_size=12).map(" ".join), st.just(""), st.none(), st.just("apple fig apple")
)
part = st.tuples(
    st.sampled_from(["", "", "", "", "+", "-"]),
    st.one_of(
        st.lists(st.sampled_from([*WORDS, UNKNOWN]), min_size=1, max_size=1),
        st.lists(word, min_size=2, max_size=3),
    ),
)
ask = st.tuples(
    st.lists(part, min_size=1, max_size=6), st.integers(1, 50), st.sampled_from(CONDITIONS)
)
# A row that is there gets another text or goes, one that is not comes.
change = st.tuples(st.integers(1, 60), st.one_of(text, st.just("DELETE")))


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(text, max_size=50),
    asks=st.lists(ask, min_size=1, max_size=5),
    changes=st.lists(change, max_size=12),
    by_index=st.booleans(),
)
def test_random_corpora(
    searched: Searched,
    texts: list[str | None],
    asks: list[tuple[list[tuple[str, list[str]]], int, Condition]],
    changes: list[tuple[int, str | None]],
    by_index: bool,
) -> None:
    db, name = searched.db, searched.table.name

    def check() -> None:
        index = searched.index()
        for parts, k, condition in asks:
            searched.check(index, searched.analyzer.query(parts), k, condition)

    # Small as they are, the tables would be read as a whole.
    db.execute(f"SET enable_seqscan = {'off' if by_index else 'on'}")
    searched.fill(texts)
    searched.analyze()
    check()
    for key, new in changes:
        if new == "DELETE":
            db.execute(f"DELETE FROM {name} WHERE id = %s", [key])
        else:
            db.execute(
                f"INSERT INTO {name} VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET body = EXCLUDED.body",
                [key, tenant(key), tag(key), new],
            )
    check()
    db.execute(f"VACUUM ANALYZE {name}")
    check()
    searched.analyze()
    check()


def texts_by_frequency(rows: int, seed: int) -> list[str | None]:
    """Return texts in which the frequency of a word falls with its number."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 40, rows)
    ranks = np.minimum(random.zipf(1.3, int(lengths.sum())), 2000)
    ends = np.cumsum(lengths)
    return [
        " ".join(f"w{rank}" for rank in ranks[end - length : end])
        for end, length in zip(ends, lengths, strict=True)
    ]


def test_many_documents(db: psycopg.Connection[Any]) -> None:
    """Enough of them that terms are left out by their bounds, and rows found in several steps."""
    db.execute("CREATE TABLE many (id int PRIMARY KEY, tenant int, tag text, body text)")
    db.execute("CALL sqlvec.add_bm25('many', 'body', config => 'simple')")
    searched = Searched(db, Table("many", "simple"))
    texts = texts_by_frequency(5000, seed=3)
    searched.fill(texts)
    searched.analyze()
    db.execute("VACUUM ANALYZE many")
    index = searched.index()
    random = np.random.default_rng(4)
    for number in range(150):
        words = sorted({*(texts[random.integers(len(texts))] or "w1").split()})
        some = random.choice(words, min(len(words), 1 + number % 8), replace=False)
        query = searched.analyzer.words(" ".join(some))
        k = int(random.choice([1, 3, 10, 50, 1000]))
        searched.check(index, query, k, CONDITIONS[number % len(CONDITIONS)])


def test_equal_documents_by_key(db: psycopg.Connection[Any]) -> None:
    """The cut falls between equal documents: the first keys stay, whatever their place."""
    db.execute("CREATE TABLE equal (id int PRIMARY KEY, body text)")
    db.execute("CALL sqlvec.add_bm25('equal', 'body')")
    db.execute(
        "INSERT INTO equal SELECT i, CASE i % 3 WHEN 0 THEN 'apple banana' ELSE 'apple fig' END"
        " FROM generate_series(200, 1, -1) AS i"
    )
    db.execute("UPDATE equal SET body = body || '' WHERE id % 7 = 0")
    db.execute("CALL sqlvec.analyze_bm25('equal')")
    fig = [key for key in range(1, 201) if key % 3]
    banana = [key for key in range(1, 201) if key % 3 == 0]
    for k in (1, 5, 30, 66, 67, 100):
        for text_, first, second in (
            ("apple", [*range(1, 201)], []),
            ("apple banana", banana, fig),
        ):
            found = [row[0] for row in search(db, "equal", text_, k=k)]
            assert found == [*first, *second][:k]


def test_equals_bm25s(db: psycopg.Connection[Any]) -> None:
    """The scores are those of Lucene's formula times k1 + 1, which bm25s leaves out."""
    db.execute("CREATE TABLE other (id int PRIMARY KEY, tenant int, tag text, body text)")
    db.execute("CALL sqlvec.add_bm25('other', 'body', config => 'simple')")
    searched = Searched(db, Table("other", "simple"))
    texts = [text for text in texts_by_frequency(800, seed=5) if text]
    searched.fill(texts)
    searched.analyze()
    reference = bm25s.BM25(method="lucene", k1=documents.K1, b=documents.B)
    reference.index([text.split() for text in texts], show_progress=False)
    for number in range(60):
        words = texts[-1 - number].split()[: 1 + number % 9]
        expected = (documents.K1 + 1) * reference.get_scores(words)
        best = np.sort(expected[expected > 0])[::-1][:50]
        found = search(db, "other", " ".join(words), k=50)
        assert len(found) == len(best)
        scores = np.array([row[1] for row in found])
        assert np.abs(scores - best).max() <= documents.TOLERANCE
        own = expected[[row[0] - 1 for row in found]]
        assert np.abs(scores - own).max() <= documents.TOLERANCE


def test_fields(db: psycopg.Connection[Any]) -> None:
    """A word of the title counts twice, in frequency and in length."""
    db.execute("CREATE TABLE fields (id int PRIMARY KEY, title text, body text)")
    db.execute("""CALL sqlvec.add_bm25('fields', NULL, fields => '{"title": 2, "body": 1}')""")
    db.execute("INSERT INTO fields VALUES (0, 'apple', 'banana')")
    stored = dict(
        db.execute(
            "SELECT lexeme, weights[1] FROM fields, unnest(title_body_bm25_tsv) WHERE id = 0"
        ).fetchall()
    )
    labels = {stored["appl"]: 2.0, stored["banana"]: 1.0}
    random = np.random.default_rng(8)
    texts: dict[int, list[str]] = {}
    for key in range(1, 120):
        texts[key] = [" ".join(random.choice(WORDS, random.integers(0, 9))) for _ in "tb"]
        row = [key, *(part or None for part in texts[key])]
        db.execute("INSERT INTO fields VALUES (%s, %s, %s)", row)
    db.execute("CALL sqlvec.analyze_bm25('fields', drift => 0)")
    column = "title_body_bm25_tsv"
    documents_ = documents.read(db, "fields", column, labels)
    analyzer = Analyzer(db, "english")
    for key, document in documents_.items():
        if key:
            assert set(document.counts) == {
                lexeme for _, lexeme in analyzer.phrase(" ".join(texts[key]))
            }
    statistics = Statistics.of(documents_.values())
    index = Index(documents_, statistics.avgdl)
    for number in range(40):
        query = analyzer.words(" ".join(random.choice(WORDS, 1 + number % 5)))
        found = search(db, "fields", query.text, "title_body_bm25", k=15)
        documents.check([row[:2] for row in found], index.scores(query, statistics), 15)


def test_tsvector_of_the_application(db: psycopg.Connection[Any]) -> None:
    """Labels of the application's own tsvector weigh what the declaration says."""
    db.execute("CREATE TABLE own (id int PRIMARY KEY, lexemes tsvector)")
    db.execute("""CALL sqlvec.add_bm25('own', 'lexemes', fields => '{"A": 3, "D": 1}')""")
    random = np.random.default_rng(9)
    for key in range(1, 120):
        title, body = (" ".join(random.choice(WORDS, random.integers(0, 9))) for _ in "tb")
        db.execute(
            "INSERT INTO own VALUES (%s, setweight(to_tsvector('english', %s), 'A') || to_tsvector('english', %s))",
            [key, title, body],
        )
    # Without positions a lexeme counts once.
    db.execute("CREATE TABLE bare (id int PRIMARY KEY, lexemes tsvector)")
    db.execute("CALL sqlvec.add_bm25('bare', 'lexemes')")
    db.execute("INSERT INTO bare SELECT id, strip(lexemes) FROM own")
    analyzer = Analyzer(db, "english")
    for name, labels in (("own", {"A": 3.0}), ("bare", {})):
        db.execute(f"CALL sqlvec.analyze_bm25('{name}', drift => 0)")
        stored = documents.read(db, name, "lexemes", labels)
        statistics = Statistics.of(stored.values())
        index = Index(stored, statistics.avgdl)
        for number in range(30):
            query = analyzer.words(" ".join(random.choice(WORDS, 1 + number % 5)))
            found = search(db, name, query.text, "lexemes", k=15)
            documents.check([row[:2] for row in found], index.scores(query, statistics), 15)


def test_statistics_by_tenant(db: psycopg.Connection[Any]) -> None:
    """Each tenant ranks by its own corpus, as if the others' rows were not there."""
    db.execute("CREATE TABLE by_tenant (id int PRIMARY KEY, tenant int, tag text, body text)")
    db.execute("CALL sqlvec.add_bm25('by_tenant', 'body', tenant => 'tenant')")
    searched = Searched(db, Table("by_tenant"))
    random = np.random.default_rng(10)
    texts = []
    for key in range(1, 301):
        # Lengths and frequent words differ from tenant to tenant.
        chances = np.roll(np.arange(1, len(WORDS) + 1), 7 * tenant(key)).astype(float)
        words = random.choice(
            WORDS, random.integers(1, 5 + 9 * tenant(key)), p=chances / chances.sum()
        )
        texts.append(" ".join(words))
    searched.fill(texts)
    db.execute("CALL sqlvec.analyze_bm25('by_tenant', drift => 0)")
    stored = documents.read(db, "by_tenant")
    # Lengths are compared with those of all: a weight does not know who will ask.
    index = Index(stored, Statistics.of(stored.values()).avgdl)
    for one in range(3):
        mine = {key: document for key, document in stored.items() if tenant(key) == one}
        statistics = Statistics.of(mine.values())
        for number in range(20):
            query = searched.analyzer.words(" ".join(random.choice(WORDS, 1 + number % 5)))
            found = search(
                db, "by_tenant", query.text, tenant=str(one), filter=json.dumps({"tenant": one})
            )
            scores = index.scores(query, statistics, mine.__contains__)
            documents.check([row[:2] for row in found], scores, 10)


def test_partitions(db: psycopg.Connection[Any]) -> None:
    """Partitions share the statistics of the whole table, searched together or alone."""
    db.execute(
        "CREATE TABLE parted (id int, tenant int, tag text, body text, PRIMARY KEY (id, tenant)) PARTITION BY LIST (tenant)"
    )
    for one in range(3):
        db.execute(f"CREATE TABLE parted_{one} PARTITION OF parted FOR VALUES IN ({one})")
    db.execute("CALL sqlvec.add_bm25('parted', 'body', config => 'simple')")
    searched = Searched(db, Table("parted", "simple"))
    texts = texts_by_frequency(900, seed=11)
    searched.fill(texts)
    searched.analyze()
    db.execute("VACUUM ANALYZE parted")
    index = searched.index()
    for number, text in enumerate(texts[:60]):
        query = searched.analyzer.words(" ".join((text or "").split()[: 1 + number % 6]))
        searched.check(index, query, 12, CONDITIONS[number % len(CONDITIONS)])
        found = search(db, "parted_1", query.text, k=12)
        scores = index.scores(query, searched.statistics, lambda key: tenant(key) == 1)
        documents.check([row[:2] for row in found], scores, 12)


def test_prefix_scores_what_completes_it(db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE prefixed (id int PRIMARY KEY, tenant int, tag text, body text)")
    db.execute("CALL sqlvec.add_bm25('prefixed', 'body', config => 'simple')")
    searched = Searched(db, Table("prefixed", "simple"))
    searched.fill(texts_by_frequency(600, seed=12))
    searched.analyze()
    index = searched.index()
    for prefix, word in (("w19", ""), ("w15", "w2"), ("w7", "w7"), ("w11", "w3 w3")):
        completions = {
            lexeme for lexeme in searched.statistics.frequencies if lexeme.startswith(prefix)
        }
        assert 1 < len(completions) <= 64
        words = searched.analyzer.words(word)
        scored = {lexeme: 1 for lexeme in completions} | dict(words.scored)
        query = Query(f"{word} {prefix}*", scored, frozenset(scored))
        searched.check(index, query, 20)


def test_small_drift_leaves_the_weights(db: psycopg.Connection[Any]) -> None:
    """New frequencies count at once; weights keep the mean length until it has moved enough."""
    db.execute("CREATE TABLE drifting (id int PRIMARY KEY, tenant int, tag text, body text)")
    db.execute("CALL sqlvec.add_bm25('drifting', 'body', config => 'simple')")
    searched = Searched(db, Table("drifting", "simple"))
    searched.fill(["apple fig kiwi", "apple", "banana fig fig", "kiwi kiwi banana"] * 10)
    searched.analyze()
    before = searched.statistics
    queries = [
        searched.analyzer.words(text) for text in ("apple", "fig kiwi", "banana apple olive")
    ]
    weights = "SELECT id, body_bm25::text FROM drifting WHERE id <= 40 ORDER BY id"
    stored = db.execute(weights).fetchall()

    searched.insert(41, ["apple banana cherry olive"] * 3)
    db.execute("CALL sqlvec.analyze_bm25('drifting')")
    assert db.execute(weights).fetchall() == stored
    after = Statistics.of(documents.read(db, "drifting").values())
    assert before.avgdl < after.avgdl < 1.1 * before.avgdl
    index = Index(documents.read(db, "drifting"), before.avgdl)
    for query in queries:
        found = search(db, "drifting", query.text)
        documents.check([row[:2] for row in found], index.scores(query, after), 10)

    searched.insert(51, ["apple banana cherry olive fig kiwi lemon mango"] * 5)
    db.execute("CALL sqlvec.analyze_bm25('drifting')")
    assert db.execute(weights).fetchall() != stored
    searched.statistics = Statistics.of(documents.read(db, "drifting").values())
    searched.avgdl = searched.statistics.avgdl
    assert searched.avgdl > 1.1 * before.avgdl
    for query in queries:
        searched.check(searched.index(), query)


def test_score_of_a_row(db: psycopg.Connection[Any]) -> None:
    """bm25_score gives what the search gives, and 0 to a row without the words."""
    db.execute("CREATE TABLE scored (id int PRIMARY KEY, tenant int, tag text, body text)")
    db.execute("CALL sqlvec.add_bm25('scored', 'body')")
    searched = Searched(db, Table("scored"))
    searched.fill(["apple fig kiwi", "apple", "banana fig fig", "", None] * 10)
    searched.analyze()
    query = searched.analyzer.words("fig running apple fig")
    scores = searched.index().scores(query, searched.statistics)
    found = db.execute(
        "SELECT id, sqlvec.bm25_score(scored, 'body', %s) FROM scored", [query.text]
    ).fetchall()
    assert len(found) == 50
    for key, score in found:
        assert abs((score or 0) - scores.get(key, 0)) <= documents.TOLERANCE


@pytest.fixture(scope="module")
def parsed(db: psycopg.Connection[Any]) -> str:
    db.execute("CREATE TABLE parsed (id int PRIMARY KEY, body text)")
    db.execute("CALL sqlvec.add_bm25('parsed', 'body', config => 'simple')")
    db.execute("INSERT INTO parsed VALUES (1, 'a b ab 1 é'), (2, 'or ba')")
    db.execute("CALL sqlvec.analyze_bm25('parsed')")
    return "parsed"


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from(" ab\"'+-*|&!()<>:\\%$1éπ\n\t,.@/or"), max_size=30))
def test_any_text_parses(db: psycopg.Connection[Any], parsed: str, text: str) -> None:
    found = search(db, parsed, text)
    assert {row[0] for row in found} <= {1, 2}
    assert all(row[1] > 0 and row[2] for row in found)


@pytest.fixture(scope="module", params=["never_counted", "counted"])
def sparse(request: pytest.FixtureRequest, db: psycopg.Connection[Any]) -> str:
    name = f"sparse_{request.param}"
    db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, body text)")
    db.execute(f"CALL sqlvec.add_bm25('{name}', 'body')")
    db.execute(f"INSERT INTO {name} VALUES (1, 'banana'), (2, 'the kiwi'), (3, ''), (4, NULL)")
    if request.param == "counted":
        db.execute(f"CALL sqlvec.analyze_bm25('{name}')")
    return name


@pytest.mark.parametrize(
    "text",
    ["", " ", "the", "the and", "zzyzx", "-apple", '-"apple fig"', "-the", "+zzyzx", '"'],
)
def test_nothing_to_search_for(db: psycopg.Connection[Any], sparse: str, text: str) -> None:
    assert search(db, sparse, text) == []
