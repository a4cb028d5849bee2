"""Judgements from files and tables, and the candidates of judged queries from a database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from sqlvec.errors import DeclarationError, FittingError
from sqlvec.fit.background import background_labels, fit_background, unanswerable
from sqlvec.fit.relevance import MIN_POSITIVES, MIN_QUERIES, Examples, apply
from sqlvec.relevance import Background, Floats, LegModel, score_features

Judgements: TypeAlias = Mapping[str, Mapping[str, float]]
"""Grade of a document, above 0 for relevant, by query and document, both as text."""

_COLUMNS = ("query-id", "corpus-id", "score")
_BACKGROUND_ROWS = 5000


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows and queries are.

    Tables are named as in SQL, with schema and quotes where they need them; columns as they are.

    :param leg: ``vector``, ``text`` or ``tokens``.
    :param table: the table that is searched.
    :param column: its vector, BM25 or multi-vector column.
    :param key: the column that judgements name rows by.
    :param queries: a table with the queries.
    :param query_key: its column that judgements name queries by.
    :param query_column: the query itself: a vector, a text, or a multi-vector.
    """

    leg: str
    table: str
    column: str
    key: str
    queries: str
    query_key: str
    query_column: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a search finds for queries, and what a model is to know of them."""

    examples: Examples
    queries: list[str]
    """Key of each query of the examples."""

    rows: list[str]
    """Key of each candidate of the examples."""

    background: Background | None
    """What the features of a vector leg came from."""

    unanswerable: Examples | None
    """Queries that ask for nothing, for a vector leg to learn from."""

    asked: list[str]
    """Key of each query that was searched, also where nothing was found."""

    maxima: list[float]
    """What scores of each query of the examples were divided by."""

    found: float
    """Share of the relevant rows among the candidates; NaN without judgements."""

    @property
    def label(self) -> Floats:
        """Label of each candidate."""
        return self.examples.label

    @property
    def query_keys(self) -> list[str]:
        """Key of the query of each candidate."""
        return [self.queries[number] for number in self.examples.query]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Keys of query and row of each candidate."""
        return list(zip(self.query_keys, self.rows, strict=True))


@dataclass(frozen=True, slots=True)
class Aligned:
    """Candidates that at least one of several legs found."""

    relevance: dict[str, Floats]
    """Of each candidate by leg (m,), NaN where the leg has no score for it."""

    query: NDArray[np.intp]
    """Number of the query of each candidate, from 0."""

    label: Floats
    query_keys: list[str]
    rows: list[str]
    asked: list[str]
    """Key of each query that one of the legs searched."""


def read_judgements(path: Path) -> Judgements:
    """Read judgements from a file.

    Tab separated, with or without the header ``query-id corpus-id score`` of BEIR, or the four
    columns of TREC; a file that begins with ``{`` holds a JSON object a line, with those keys.

    :raises DeclarationError: a line that is none of these.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DeclarationError(f"{path} is not in UTF-8: {error}") from None
    rows: list[tuple[str, str, float]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            if line.startswith("{"):
                record = json.loads(line)
                rows.append(_row(*(record[name] for name in _COLUMNS)))
                continue
            fields = line.split("\t") if "\t" in line else line.split()
            if number == 1 and fields[0] == _COLUMNS[0]:
                continue
            query, document, grade = fields if len(fields) == 3 else (fields[0], *fields[2:])
            rows.append(_row(query, document, grade))
        except (KeyError, TypeError, ValueError):
            raise DeclarationError(
                f"{path}, line {number} is no judgement: expected {', '.join(_COLUMNS)}"
            ) from None
    return _judgements(rows)


def load_judgements(
    connection: Connection,
    table: str,
    columns: tuple[str, str, str] = ("query_id", "document_id", "grade"),
) -> Judgements:
    """Read judgements from a table.

    :param table: its name as in SQL.
    :param columns: those of the query, the row and the grade.
    """
    names = _Names(connection)
    query, document, grade = map(names.column, columns)
    statement = f"SELECT {query}::text, {document}::text, {grade}::float8 FROM {names.table(table)}"
    statement += f" WHERE {query} IS NOT NULL AND {document} IS NOT NULL AND {grade} IS NOT NULL"
    try:
        return _judgements(_row(*row) for row in _execute(connection, statement, ()))
    except ValueError as error:
        raise DeclarationError(f"table {table} holds a judgement that is none: {error}") from None


def collect(
    connection: Connection,
    source: Source,
    judgements: Judgements | None,
    *,
    candidates: int = 100,
    model: LegModel | None = None,
    seed: int = 0,
) -> Candidates:
    """Search every judged query and label what is found.

    :param judgements: None labels the candidates of all queries by the background instead, see
        :func:`~sqlvec.fit.background.background_labels`; of the vector leg alone.
    :param candidates: rows to find for each query.
    :param model: one to measure features against; None makes a background from a sample of rows.
    :raises DeclarationError: a table or column is not there, or the leg is unknown.
    :raises FittingError: there is nothing to search or to find; or, without ``model``, too little
        to fit one to.
    """
    names = _Names(connection)
    queries = _queries(connection, names, source, judgements)
    if judgements is None and source.leg != "vector":
        raise FittingError("without judgements only a vector leg can be fitted")
    if not queries:
        raise FittingError(
            f"table {source.queries} has no query to search; judgements name queries by its column"
            f" {source.query_key}, and {source.query_column} has to hold them"
        )
    lists = [_search(connection, names, source, query, candidates) for query in queries.values()]
    used = [i for i, found in enumerate(lists) if found.keys]
    if not used:
        raise FittingError(
            f"none of {len(queries)} queries found anything in column {source.column} of table"
            f" {source.table}"
        )
    if judgements is not None and model is None:
        _require_answers(source, judgements, queries, lists, candidates)
    ids = list(queries)
    asked = [ids[i] for i in used]
    rows = [key for i in used for key in lists[i].keys]
    scores = [lists[i].x for i in used]
    maxima = [lists[i].maximum for i in used]
    background = model.background if model is not None else None
    sample = np.zeros((0, 0))
    nothing = None
    if source.leg == "vector":
        vectors = np.array([_vector(queries[ids[i]]) for i in used])
        if model is None:
            sample = _sample(connection, names, source, seed)
            background = fit_background(sample, vectors, seed=seed)
            nothing = unanswerable(background, sample, len(vectors), seed=seed)
        none = np.zeros((len(vectors), 0))
        features = none if background is None else background.features(vectors)
    else:
        features = score_features(maxima, [lists[i].terms for i in used])
    if judgements is None:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        chance = unit @ (sample / np.linalg.norm(sample, axis=1, keepdims=True)).T
        labels = background_labels(scores, list(chance), _count(connection, names, source))
        examples = Examples.of_lists(features, scores, labels)
        return Candidates(examples, asked, rows, background, nothing, ids, maxima, float("nan"))
    labels = [
        np.array([judgements[ids[i]].get(key, 0) > 0 for key in lists[i].keys], dtype=np.float64)
        for i in used
    ]
    relevant = sum(grade > 0 for query in ids for grade in judgements[query].values())
    found = sum(float(part.sum()) for part in labels)
    examples = Examples.of_lists(features, scores, labels)
    share = found / max(relevant, 1)
    return Candidates(examples, asked, rows, background, nothing, ids, maxima, share)


def complete(
    connection: Connection,
    source: Source,
    found: Candidates,
    pairs: Iterable[tuple[str, str]],
    judgements: Judgements,
) -> Candidates:
    """Score what other legs found, as :func:`sqlvec.hybrid_search` does.

    :param found: the candidates of this leg.
    :param pairs: keys of query and row of those of all legs.
    :return: the others among them, with the queries and the features of ``found``. A row without
        any of the words has no score, and a query for which the leg found nothing no rows.
    """
    names = _Names(connection)
    queries = _queries(connection, names, source, judgements)
    own = set(found.pairs)
    wanted: dict[str, list[str]] = {query: [] for query in found.queries}
    for query, row in dict.fromkeys(pairs):
        if query in wanted and (query, row) not in own:
            wanted[query].append(row)
    keys, x, label = [], [], []
    for maximum, (query, rows) in zip(found.maxima, wanted.items(), strict=True):
        scores = _scores(connection, names, source, queries[query], rows) if rows else {}
        kept = [row for row in rows if row in scores]
        keys += kept
        x.append([scores[row] / maximum for row in kept])
        label.append([float(judgements[query].get(row, 0) > 0) for row in kept])
    examples = Examples.of_lists(found.examples.features, x, label)
    return replace(found, examples=examples, rows=keys, unanswerable=None, found=float("nan"))


def align(legs: Mapping[str, Sequence[tuple[Candidates, Floats]]]) -> Aligned:
    """Bring the candidates of several legs together, for :func:`~sqlvec.fit.relevance.fit_fused`.

    :param legs: the candidates of each leg with their relevance, found and :func:`complete`.
    """
    place: dict[tuple[str, str], int] = {}
    labels: list[float] = []
    for parts in legs.values():
        for found, _ in parts:
            for pair, label in zip(found.pairs, found.label, strict=True):
                if pair not in place:
                    place[pair] = len(labels)
                    labels.append(float(label))
    aligned = {}
    for leg, parts in legs.items():
        values = np.full(len(labels), np.nan)
        for found, relevance in parts:
            values[[place[pair] for pair in found.pairs]] = relevance
        aligned[leg] = values
    queries = [query for query, _ in place]
    return Aligned(
        aligned,
        np.unique(queries, return_inverse=True)[1],
        np.array(labels),
        queries,
        [row for _, row in place],
        list(
            dict.fromkeys(
                key for parts in legs.values() for found, _ in parts for key in found.asked
            )
        ),
    )


def _require_answers(
    source: Source,
    judgements: Judgements,
    queries: Mapping[str, str],
    lists: Sequence[_Found],
    candidates: int,
) -> None:
    """Say what a fit needs before it is begun, in terms of what it was given."""
    answers = [
        sum(judgements[query].get(key, 0) > 0 for key in found.keys)
        for query, found in zip(queries, lists, strict=True)
    ]
    answered = sum(count > 0 for count in answers)
    others = sum(len(found.keys) for found in lists) - sum(answers)
    if min(sum(answers), others) >= MIN_POSITIVES and answered >= MIN_QUERIES:
        return
    wanted = sum(max(grades.values()) > 0 for grades in judgements.values())
    message = (
        f"a relevance model needs {MIN_QUERIES} judged queries with an answer among their"
        f" candidates, {MIN_POSITIVES} answers and {MIN_POSITIVES} other candidates; of {wanted}"
        f" queries with an answer, {len(queries)} are in table {source.queries}, and {answered}"
        f" have an answer among the {candidates} best rows of column {source.column} of table"
        f" {source.table} ({sum(answers)} answers, {others} others)"
    )
    if not answered:
        message += f"; do the judgements name rows by column {source.key}?"
    raise FittingError(message)


def judge(
    connection: Connection,
    legs: Sequence[tuple[LegModel, Source]],
    judgements: Judgements,
    *,
    candidates: int = 100,
) -> tuple[list[tuple[Candidates, Floats]], Aligned]:
    """Search judged queries, and apply models to what is found.

    :return: the candidates of each leg with their relevance, and those of all legs together.
    """
    found = []
    for model, source in legs:
        some = collect(connection, source, judgements, candidates=candidates, model=model)
        found.append((some, apply(model, some.examples)))
    pairs = [pair for some, _ in found for pair in some.pairs]
    parts = {}
    for (model, source), (some, relevance) in zip(legs, found, strict=True):
        others = complete(connection, source, some, pairs, judgements)
        parts[model.leg] = [(some, relevance), (others, apply(model, others.examples))]
    return found, align(parts)


@dataclass(frozen=True, slots=True)
class _Found:
    keys: list[str]
    x: Floats
    maximum: float
    terms: int


def _search(connection: Connection, names: _Names, source: Source, query: str, k: int) -> _Found:
    table = names.table(source.table)
    if source.leg == "vector":
        rows = _execute(
            connection,
            f"SELECT key, distance FROM sqlvec.vector_search_keys(NULL::{table}, %s,"
            f" CAST(%s AS {names.type('vector')}), key => NULL::text, k => %s,"
            " metric => 'cosine', key_column => %s)",
            (source.column, query, k, source.key),
        )
        cosines = [(key, 1 - distance) for key, distance in rows if distance is not None]
        return _found(cosines, 1.0, 1)
    if source.leg == "text":
        maximum, terms = _execute(
            connection,
            f"SELECT sqlvec.bm25_maximum(NULL::{table}, %s, %s),"
            f" sqlvec._words(sqlvec.bm25_tsquery(NULL::{table}, %s, %s))",
            (source.column, query) * 2,
        )[0]
        rows = _execute(
            connection,
            f"SELECT key, score FROM sqlvec.bm25_search_keys(NULL::{table}, %s, %s,"
            " key => NULL::text, k => %s, key_column => %s)",
            (source.column, query, k, source.key),
        )
        return _found(rows if maximum else [], maximum, terms)
    kind = f"{names.type('halfvec')}[]"
    # As the model divides: by the tokens of the query.
    [(count,)] = _execute(
        connection, f"SELECT pg_catalog.cardinality(CAST(%s AS {kind}))", (query,)
    )
    rows = _execute(
        connection,
        f"SELECT key, score FROM sqlvec.maxsim_search_keys(NULL::{table}, %s, CAST(%s AS {kind}),"
        " key => NULL::text, k => %s, key_column => %s)",
        (source.column, query, k, source.key),
    )
    return _found(rows, count, 1)


def _scores(
    connection: Connection, names: _Names, source: Source, query: str, keys: list[str]
) -> dict[str, float]:
    """Return the scores of rows by key; a row may have none."""
    table, key = names.table(source.table), names.column(source.key)
    key_type = names.key_type(source.table, source.key)
    column = f"t.{names.column(source.column)}"
    kind = names.column_type(source.table, source.column)
    values: tuple[Any, ...] = (query,)
    if source.leg == "vector":
        score = f"{column} {names.operator('<=>')} CAST(%s AS {names.type(kind)})"
    elif source.leg == "text":
        score = "sqlvec.bm25_score(t, %s, %s)"
        values = (source.column, query)
    else:
        function = "maxsim" if kind == "_halfvec" else "maxsim_vector"
        score = f"sqlvec.{function}({column}, CAST(%s AS {names.type(kind.lstrip('_'))}[]))"
    rows = _execute(
        connection,
        f"SELECT t.{key}::text, {score} FROM {table} AS t"
        f" WHERE t.{key} OPERATOR(pg_catalog.=) ANY (CAST(%s AS {key_type}[]))",
        (*values, keys),
    )
    found = {key: score for key, score in rows if score is not None and not np.isnan(score)}
    if source.leg == "vector":
        return {key: 1.0 - distance for key, distance in found.items()}
    # A text score of 0 is that of a row without any of the words.
    return {key: score for key, score in found.items() if score != 0 or source.leg != "text"}


def _found(rows: list[Any], maximum: float, terms: int) -> _Found:
    kept = [row for row in rows if row[1] is not None and not np.isnan(row[1])]
    x = np.array([row[1] / maximum for row in kept], dtype=np.float64)
    return _Found([row[0] for row in kept], x, maximum, terms)


def _queries(
    connection: Connection, names: _Names, source: Source, judgements: Judgements | None
) -> dict[str, str]:
    """Return queries as text, those with a relevant row where there are judgements."""
    if source.leg not in ("vector", "text", "tokens"):
        raise DeclarationError(f"a leg is vector, text or tokens, not {source.leg!r}")
    key, column = names.column(source.query_key), names.column(source.query_column)
    statement = f"SELECT {key}::text, {column}::text FROM {names.table(source.queries)}"
    statement += f" WHERE {column} IS NOT NULL ORDER BY 1"
    wanted = None
    if judgements is not None:
        wanted = {q for q, grades in judgements.items() if max(grades.values(), default=0) > 0}
    found = {
        row[0]: row[1]
        for row in _execute(connection, statement, ())
        if wanted is None or row[0] in wanted
    }
    if source.leg == "vector":
        found = {name: value for name, value in found.items() if _vector(value).any()}
    return found


def _sample(
    connection: Connection, names: _Names, source: Source, seed: int
) -> NDArray[np.float64]:
    """Return vectors of random pages of the table."""
    table, column = names.table(source.table), names.column(source.column)
    share = min(100.0, 200.0 * _BACKGROUND_ROWS / max(_count(connection, names, source), 1))
    found = _execute(
        connection,
        f"SELECT {column}::text FROM {table} TABLESAMPLE SYSTEM (%s) REPEATABLE (%s)"
        # Not those that come first in the table.
        f" WHERE {column} IS NOT NULL"
        " ORDER BY pg_catalog.hashtextextended(ctid::text, %s) LIMIT %s",
        (share, seed, seed, _BACKGROUND_ROWS),
    )
    vectors = [_vector(row[0]) for row in found]
    return np.array([vector for vector in vectors if vector.any()])


def _count(connection: Connection, names: _Names, source: Source) -> int:
    table, column = names.table(source.table), names.column(source.column)
    return int(_execute(connection, f"SELECT pg_catalog.count({column}) FROM {table}", ())[0][0])


def _vector(literal: str) -> NDArray[np.float64]:
    try:
        return np.array(literal.strip("[]").split(","), dtype=np.float64)
    except ValueError:
        raise DeclarationError(
            f"{literal[:40]!r} is no vector: the leg of vectors takes a column of vectors from both"
            " tables; for words there is leg text"
        ) from None


def _row(query: Any, document: Any, grade: Any) -> tuple[str, str, float]:
    if not isfinite(float(grade)):
        raise ValueError(f"grade {grade}")
    return str(query), str(document), float(grade)


def _judgements(rows: Iterable[tuple[str, str, float]]) -> Judgements:
    grades: dict[str, dict[str, float]] = {}
    for query, document, grade in rows:
        grades.setdefault(query, {})[document] = grade
    if not grades:
        raise FittingError("there are no judgements")
    return grades


def _execute(connection: Connection, statement: str, values: tuple[Any, ...]) -> list[Any]:
    return list(connection.exec_driver_sql(statement, values))


class _Names:
    """Names as the server quotes them, so that they can stand in a statement."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def table(self, name: str) -> str:
        statement = "SELECT sqlvec._qualified(pg_catalog.to_regclass(CAST(:name AS text)))"
        found = self._connection.scalar(text(statement), {"name": name})
        if found is None:
            raise DeclarationError(f"table {name} does not exist")
        return self._doubled(found)

    def column(self, name: str) -> str:
        return self._doubled('"' + name.replace('"', '""') + '"')

    def type(self, name: str) -> str:
        schema = self._connection.scalar(
            text("SELECT pg_catalog.quote_ident(sqlvec._vector_schema())")
        )
        return self._doubled(f"{schema}.{name}")

    def operator(self, name: str) -> str:
        schema = self._connection.scalar(
            text("SELECT pg_catalog.quote_ident(sqlvec._vector_schema())")
        )
        return self._doubled(f"OPERATOR({schema}.{name})")

    def column_type(self, table: str, column: str) -> str:
        """Return the name of the type, that of an array with an underscore."""
        return self._column(table, column, "type_name")

    def key_type(self, table: str, column: str) -> str:
        """Return the type as SQL has it."""
        found = self._column(table, column, "pg_catalog.format_type(c.type_oid, NULL)")
        return self._doubled(found)

    def _column(self, table: str, column: str, wanted: str) -> str:
        statement = (
            f"SELECT {wanted} FROM sqlvec._column(CAST(CAST(:t AS text) AS regclass), :c) AS c"
        )
        found: str = self._connection.scalar(text(statement), {"t": table, "c": column})
        return found

    @staticmethod
    def _doubled(name: str) -> str:
        return name.replace("%", "%%")
