"""The commands ``sqlvec relevance``: from judgements to a model that cuts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sqlalchemy import NullPool, create_engine
from typer.testing import CliRunner

from sqlvec import relevance
from sqlvec.cli.app import app
from sqlvec.errors import DeclarationError, FittingError
from sqlvec.fit.judgements import Source, collect, complete, judge
from sqlvec.relevance import EXPONENTS
from tests.db.server import sqlalchemy_url

TOPICS, ROWS, QUERIES, DIMENSIONS = 40, 8, 40, 32
FRUIT = ("apple", "pear", "fig", "plum", "quince")


@pytest.fixture(scope="module")
def collection(dsn: str) -> str:
    """Topics of eight rows each; a query is about one, and names its words."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(TOPICS, DIMENSIONS))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("""
            CREATE SCHEMA "my %shop"; SET search_path = "my %shop", public;
            CREATE TABLE "Doc %1" ("the id" int PRIMARY KEY, body text, "em bedding" vector(32), tokens halfvec(32)[]);
            CREATE TABLE query (id text PRIMARY KEY, words text, embedding vector(32), tokens halfvec(32)[]);
            CREATE TABLE judgement (query_id text, document_id int, grade int);
            CALL sqlvec.add_bm25('"Doc %1"', 'body', 'simple');
        """)
        for row in range(TOPICS * ROWS):
            topic = row // ROWS
            vector = centres[topic] + 0.5 * random.normal(size=DIMENSIONS)
            words = f"topic{topic} {FRUIT[row % 5]} {FRUIT[topic % 5]}"
            connection.execute(
                'INSERT INTO "Doc %%1" VALUES (%s, %s, %s::vector, ARRAY[%s]::halfvec[])',
                (row, words, str(vector.tolist()), str(vector.tolist())),
            )
        for query in range(QUERIES):
            vector = centres[query] + 0.5 * random.normal(size=DIMENSIONS)
            connection.execute(
                "INSERT INTO query VALUES (%s, %s, %s::vector, ARRAY[%s]::halfvec[])",
                (
                    f"q{query}",
                    f"topic{query} {FRUIT[0]}",
                    str(vector.tolist()),
                    str(vector.tolist()),
                ),
            )
            for row in range(query * ROWS, (query + 1) * ROWS):
                connection.execute("INSERT INTO judgement VALUES (%s, %s, 1)", (f"q{query}", row))
        # Rows that no leg can score.
        connection.execute(
            """INSERT INTO "Doc %1" VALUES (-1, NULL, NULL, NULL), (-2, '', array_fill(0, ARRAY[32])::vector, '{}')"""
        )
        connection.execute("CALL sqlvec.analyze_bm25('\"Doc %1\"')")
    return dsn


def sqlvec(dsn: str, *arguments: str, **environment: str) -> str:
    environment = {"SQLVEC_DSN": dsn, "COLUMNS": "200"} | environment
    result = CliRunner().invoke(
        app, ["relevance", *arguments], env=environment, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


LINEAR = ("--family", "linear")
TABLE = '"my %shop"."Doc %1"'
LEGS = {
    "vector": ("em bedding", "embedding"),
    "text": ("body", "words"),
    "tokens": ("tokens", "tokens"),
}


def options(leg: str, *more: str) -> list[str]:
    column, query_column = LEGS[leg]
    return [
        TABLE, column, "--leg", leg, "--key", "the id", "--queries", '"my %shop".query',
        "--query-column", query_column, "--candidates", "30", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("leg", LEGS)
def test_fit_list_report_drop(collection: str, leg: str, tmp_path: Path) -> None:
    name = f"a {leg} model"
    page, later = tmp_path / "fit.html", tmp_path / "later.html"
    judged = ("--judgements-table", '"my %shop".judgement')
    said = sqlvec(collection, "fit", name, *options(leg, *judged, *LINEAR, "--report", str(page)))
    assert said.startswith(f"{name}: family linear, fitted to ")
    assert "of 40 queries" in said and "min_relevance for a recall of 95%: " in said
    assert page.read_text().count("<svg") == 4
    assert "nDCG@10" in page.read_text()
    assert name in sqlvec(collection, "list")

    with psycopg.connect(collection) as connection:
        cut = connection.execute("SELECT sqlvec.relevance_threshold(%s)", [name]).fetchone()
        assert cut is not None and 0 < cut[0] < 1
        if leg == "vector":
            # A query that the model knows keeps its topic; one about nothing keeps nothing.
            kept = """
                SELECT array_agg((d."the id")) FROM "my %%shop"."Doc %%1" AS d, "my %%shop".query AS q
                WHERE q.id = 'q3' AND d."em bedding" <=> q.embedding <= sqlvec.relevance_bound(%s, q.embedding, %s)
            """
            found = connection.execute(kept, (name, cut[0])).fetchone()
            assert found is not None and len(set(found[0]) & set(range(24, 32))) >= 6
            assert len(found[0]) < 60

    arguments = options(leg)[options(leg).index("--key") :]
    sqlvec(collection, "report", name, str(later), *arguments, *judged)
    assert later.read_text().count("<svg") == 4
    assert f"{cut[0]:.4f}" in later.read_text()  # the stored threshold is the one in use
    sqlvec(collection, "drop", name)
    assert name not in sqlvec(collection, "list")


def test_fuse(collection: str, tmp_path: Path) -> None:
    judged = ("--judgements-table", '"my %shop".judgement')
    for leg in ("vector", "text"):
        sqlvec(collection, "fit", f"{leg} leg", *options(leg, *judged, *LINEAR))
    page = tmp_path / "fused.html"
    common = ("--key", "the id", "--queries", '"my %shop".query', "--candidates", "30", *judged)
    models = ("--vector", "vector leg", "--text", "text leg", "--text-column", "words")
    said = sqlvec(collection, "fuse", "both", *models, *common, "--report", str(page))
    assert said.startswith("both: fitted to ") and "held out of fit and threshold" in said
    assert page.read_text().count("<svg") == 11
    with psycopg.connect(collection) as connection:
        row = connection.execute(
            "SELECT slope, sqlvec.relevance_threshold('both'), models = ARRAY['vector leg', 'text leg', NULL], sqlvec.relevance_fused('both', 0.9, 0.9) > sqlvec.relevance_fused('both', 0.1)"
            " FROM sqlvec.relevance_model WHERE name = 'both'"
        ).fetchone()
    assert row is not None and row[0][2] == 0 and row[2:] == (True, True)
    assert "vector leg, text leg" in sqlvec(collection, "list")
    later = tmp_path / "later.html"
    more = ("--text-column", "words")
    sqlvec(collection, "report", "both", str(later), *common, *more)
    shown = later.read_text()
    assert shown.count("<svg") == 11 and shown.count("vector leg, leg vector, family linear") == 3
    assert f"{row[1]:.4f}" in shown
    rows = [re.findall("<td>(.*?)</td>", line) for line in re.findall("<tr>.*?</tr>", shown)[1:4]]
    fused, vector, words = (float(cells[0]) for cells in rows)
    assert fused >= max(vector, words) > 0.5
    check_search_agrees(collection)
    with pytest.raises(DeclarationError, match="'both' combines legs; name the columns"):
        sqlvec(collection, "report", "both", str(later), *common, "--query-column", "words")
    with pytest.raises(DeclarationError, match="two legs or more"):
        sqlvec(collection, "fuse", "one", "--text", "text leg", *common)
    with pytest.raises(DeclarationError, match="'text leg' is of leg text"):
        sqlvec(collection, "fuse", "one", "--vector", "text leg", "--tokens", "text leg", *common)
    with pytest.raises(DeclarationError, match="no relevance model 'both' of one leg"):
        sqlvec(collection, "fuse", "one", "--vector", "both", "--text", "text leg", *common)
    with pytest.raises(DeclarationError, match="this needs --judgements"):
        sqlvec(collection, "fuse", "one", *models, *common[:-2])
    for name in ("both", "vector leg", "text leg"):
        sqlvec(collection, "drop", name)


def test_answered(collection: str, tmp_path: Path) -> None:
    judged = ("--judgements-table", '"my %shop".judgement')
    share = ("--answered", "0.9", "--recall", "0.8")
    page = tmp_path / "fit.html"
    arguments = options("vector", *judged, *LINEAR, *share, "--report", str(page))
    said = sqlvec(collection, "fit", "vector leg", *arguments)
    assert "a search answers nothing where the best row is below 0." in said
    with psycopg.connect(collection) as connection:
        row = connection.execute("SELECT min_best FROM sqlvec.relevance_model").fetchone()
    assert row is not None and f"below {row[0]:.4f}" in said
    assert f"best row of a query needs</th><td>{row[0]:.4f}" in page.read_text()
    sqlvec(collection, "fit", "text leg", *options("text", *judged, *LINEAR))
    common = ("--key", "the id", "--queries", '"my %shop".query', "--candidates", "30", *judged)
    models = ("--vector", "vector leg", "--text", "text leg", "--text-column", "words")
    said = sqlvec(collection, "fuse", "both", *models, *common, *share)
    assert "a search answers nothing where the best row is below " in said
    later = tmp_path / "later.html"
    more = ("--text-column", "words")
    sqlvec(collection, "report", "both", str(later), *common, *more, "--recall", "0.8")
    assert later.read_text().count("best row of a query needs") == 2
    for name in ("both", "vector leg", "text leg"):
        sqlvec(collection, "drop", name)
    few = options("vector", *judged, *LINEAR, "--answered", "0.5", "--recall", "0.95")
    with pytest.raises(DeclarationError, match="hold less than 95% of the relevant candidates"):
        sqlvec(collection, "fit", "never", *few)
    with pytest.raises(DeclarationError, match="--answered needs judgements"):
        sqlvec(collection, "fit", "never", *options("vector", "--answered", "0.9"))


def test_family_is_chosen(collection: str) -> None:
    judged = ("--judgements-table", '"my %shop".judgement')
    said = sqlvec(collection, "fit", "chosen", *options("text", *judged))
    family = said.split(",")[0].removeprefix("chosen: family ")
    assert family in EXPONENTS and family in sqlvec(collection, "list")
    sqlvec(collection, "drop", "chosen")


def check_search_agrees(collection: str) -> None:
    """Compare what a hybrid search says with what model and thresholds were fitted with."""
    engine = create_engine(sqlalchemy_url(collection), poolclass=NullPool)
    judgements = {"q3": {"24": 1.0}, "q5": {"40": 1.0}}
    with engine.connect() as connection:
        model = relevance.load(connection, "both")
        assert isinstance(model, relevance.FusedModel)
        legs = []
        for leg in ("vector", "text"):
            source = Source(
                leg, TABLE, LEGS[leg][0], "the id", '"my %shop".query', "id", LEGS[leg][1]
            )
            of_leg = relevance.load(connection, f"{leg} leg")
            assert isinstance(of_leg, relevance.LegModel)
            legs.append((of_leg, source))
        _, aligned = judge(connection, legs, judgements, candidates=30)
        expected = dict(
            zip(
                zip(aligned.query_keys, aligned.rows, strict=True),
                model.relevance(**aligned.relevance),
                strict=True,
            )
        )
        found = connection.exec_driver_sql("""
            SELECT q.id, s.key, s.relevance FROM "my %%shop".query AS q, sqlvec.hybrid_search_keys(
                NULL::"my %%shop"."Doc %%1", key => NULL::text, query_text => q.words, query_vector => q.embedding,
                k => 30, candidates => 30, fusion => 'relevance', relevance => 'both', key_column => 'the id') AS s
            WHERE q.id IN ('q3', 'q5')
        """).all()
    assert len(found) == 60 < len(expected)
    for query, row, value in found:
        assert value == pytest.approx(expected[query, row], rel=1e-5)


@pytest.mark.parametrize("leg", LEGS)
def test_what_other_legs_found_is_scored_as_by_a_search(collection: str, leg: str) -> None:
    column, query_column = LEGS[leg]
    source = Source(leg, TABLE, column, "the id", '"my %shop".query', "id", query_column)
    judgements = {f"q{n}": {str(row): 1.0 for row in range(8 * n, 8 * n + 8)} for n in range(40)}
    engine = create_engine(sqlalchemy_url(collection), poolclass=NullPool)
    with engine.connect() as connection:
        some, all_of_them = (
            collect(connection, source, judgements, candidates=count) for count in (20, 320)
        )
        asked = [(query, str(row)) for query in ("q0", "q7", "nobody") for row in range(-2, 320)]
        others = complete(connection, source, some, asked, judgements)
    assert not set(others.pairs) & set(some.pairs)
    every = dict(zip(all_of_them.pairs, all_of_them.examples.x, strict=True))
    wanted = {pair for pair in asked if pair in every} - set(some.pairs)
    assert wanted == set(others.pairs) and wanted
    for pair, x, label in zip(others.pairs, others.examples.x, others.label, strict=True):
        assert x == pytest.approx(every[pair], abs=2e-3 if leg == "tokens" else 1e-6)
        assert label == (pair[1] in judgements[pair[0]])
    np.testing.assert_array_equal(others.examples.features, some.examples.features)


def test_judgements_from_a_file(collection: str, tmp_path: Path) -> None:
    file = tmp_path / "qrels.tsv"
    lines = [f"q{row // ROWS}\t{row}\t1" for row in range(TOPICS * ROWS)]
    file.write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines))
    sqlvec(
        collection,
        "fit",
        "from file",
        *options("vector", "--judgements", str(file), "--family", "sqrt"),
    )
    assert "sqrt" in sqlvec(collection, "list")
    sqlvec(collection, "drop", "from file")
    assert "no relevance models" in sqlvec(collection, "list")


@pytest.mark.parametrize("terminal", [{}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}])
def test_names_are_listed_whole(collection: str, terminal: dict[str, str]) -> None:
    """However narrow the terminal, and where there is none."""
    name = "a model [of something] whose name is longer than a line of the terminal that shows it"
    with psycopg.connect(collection) as connection:
        connection.execute(
            "CALL sqlvec.create_relevance_model(%s, 'vector', 'raw', '{4}', '{-2}', '{1}',"
            " %s, 'em bedding')",
            [name, TABLE],
        )
    listed = sqlvec(collection, "list", COLUMNS="40", **terminal)
    row = next(line for line in listed.splitlines() if name in line)
    assert '"my %shop"."Doc %1"' in row and "em bedding" in row
    sqlvec(collection, "drop", name)


def test_without_judgements(collection: str) -> None:
    said = sqlvec(collection, "fit", "unlabelled", *options("vector"))
    assert said.startswith("unlabelled: family linear, fitted to")
    assert "without judgements: relevance is the chance of not being background" in said
    with psycopg.connect(collection) as connection:
        statement = """
            SELECT count(*) FILTER (WHERE r >= 0.5 AND d."the id" / 8 = 3), count(*) FILTER (WHERE r >= 0.5)
            FROM "my %shop"."Doc %1" AS d, "my %shop".query AS q,
                 sqlvec.relevance('unlabelled', q.embedding, 1 - (d."em bedding" <=> q.embedding)) AS r
            WHERE q.id = 'q3'
        """
        found = connection.execute(statement.encode()).fetchone()
    assert found is not None and found[0] >= 4 and found[1] < 80
    sqlvec(collection, "drop", "unlabelled")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (options("text"), FittingError, "without judgements only a vector leg"),
        (["nothing", *options("vector")[1:]], DeclarationError, "table nothing does not exist"),
        (options("vector", "--leg", "audio"), DeclarationError, "a leg is vector, text or tokens"),
        (options("vector", "--family", "cubic"), FittingError, "no family 'cubic'"),
    ],
)  # fmt: skip
def test_wrong_calls(
    collection: str, arguments: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sqlvec(collection, "fit", "wrong", *arguments)


def test_too_few_labels(collection: str, tmp_path: Path) -> None:
    file = tmp_path / "few.tsv"
    file.write_text("q1\t8\t1\nq2\t16\t1\n")
    few = options("vector", "--judgements", str(file))
    needed = "needs 20 judged queries with an answer.* of 2 queries with an answer, 2 are in table"
    with pytest.raises(FittingError, match=needed + r".*, and 2 have an answer among the 30 best"):
        sqlvec(collection, "fit", "few", *few)
    file.write_text("nobody\t8\t1\n")
    with pytest.raises(FittingError, match="no query to search; judgements name queries by its"):
        sqlvec(collection, "fit", "few", *few)
    file.write_text("q1\tdoc-8\t1\n")
    with pytest.raises(FittingError, match="do the judgements name rows by column the id?"):
        sqlvec(collection, "fit", "few", *few)
    with psycopg.connect(collection, autocommit=True) as connection:
        connection.execute(
            'CREATE TABLE "my %shop".bare (LIKE "my %shop"."Doc %1");'
            """CREATE TABLE "my %shop".nan AS SELECT 'q1' AS query_id, 8 AS document_id, 'NaN'::real AS grade"""
        )
    with pytest.raises(FittingError, match="none of 1 queries found anything in column em bedding"):
        sqlvec(collection, "fit", "few", '"my %shop".bare', *few[1:])
    with pytest.raises(DeclarationError, match="holds a judgement that is none: grade nan"):
        sqlvec(collection, "fit", "few", *few[:-2], "--judgements-table", '"my %shop".nan')


def test_nothing_is_left_of_a_failed_fit(collection: str) -> None:
    judged = ("--judgements-table", '"my %shop".judgement')
    sqlvec(collection, "fit", "once", *options("text", *judged, *LINEAR))
    with pytest.raises(DeclarationError, match="'once' already exists"):
        sqlvec(collection, "fit", "once", *options("vector", *judged, *LINEAR))
    assert sqlvec(collection, "list").count("once") == 1
    sqlvec(collection, "drop", "once")
