"""Vectors to measure on: clustered random ones, and real ones where they are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.folders import apart, folders
from benchmarks.server import Connection

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"
_COPY_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class VectorSet:
    """Unit vectors with queries from the same distribution."""

    name: str
    documents: Floats
    queries: Floats

    @property
    def dimensions(self) -> int:
        """Number of components of each vector."""
        return int(self.documents.shape[1])


def clustered(rows: int, dimensions: int, queries: int = 200, seed: int = 0) -> VectorSet:
    """Make vectors around random centres, one hundred to a centre on average.

    Centres are standard normal, a point is its centre plus 0.7 times normal noise, at unit length.
    """
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(200, rows // 100), dimensions), dtype=np.float32)

    def points(count: int) -> Floats:
        noise = random.standard_normal((count, dimensions), dtype=np.float32)
        return _unit(centres[random.integers(0, len(centres), count)] + np.float32(0.7) * noise)

    return VectorSet(f"clustered {rows:,} × {dimensions:,}", points(rows), points(queries))


def real(queries: int = 200, seed: int = 0) -> VectorSet | None:
    """Return the sentence vectors of all collections together, or None where there are none.

    A collection has them in ``doc_emb.npy`` and ``query_emb.npy``.
    """
    # The same rows twice would only make ties.
    found = apart(folders("doc_emb.npy"))
    if not found:
        return None
    documents = np.concatenate([np.load(folder / "doc_emb.npy") for folder in found])
    asked = np.concatenate([np.load(folder / "query_emb.npy") for folder in found])
    chosen = np.random.default_rng(seed).permutation(len(asked))[:queries]
    name = f"real {len(documents):,} × {documents.shape[1]:,}"
    return VectorSet(name, _unit(documents.astype(np.float32)), _unit(asked[chosen]))


def create_table(connection: Connection, table: str, vectors: Floats, inline: bool = False) -> None:
    """Create a table of documents with ids 0, 1, … and fill it.

    ``tenant_id`` has 100 values and ``year`` 50, both spread evenly.

    :param inline: keep vectors in their rows where Postgres would store them out of line.
    """
    connection.execute(f"""
        CREATE TABLE {table} (
            id int PRIMARY KEY, tenant_id int NOT NULL, year int NOT NULL,
            embedding vector({vectors.shape[1]})
        )
    """)
    if inline:
        connection.execute(f"ALTER TABLE {table} SET (toast_tuple_target = 8160)")
        connection.execute(f"ALTER TABLE {table} ALTER COLUMN embedding SET STORAGE PLAIN")
    ids = np.arange(len(vectors), dtype=np.int32)
    columns = {"id": ids, "tenant_id": ids % 100, "year": 1975 + ids // 100 % 50}
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
        copy.write(_COPY_HEADER)
        for start in range(0, len(vectors), _COPY_ROWS):
            some = slice(start, start + _COPY_ROWS)
            part = {name: column[some] for name, column in columns.items()}
            copy.write(_copy_rows(part, vectors[some]))
        copy.write(_COPY_TRAILER)
    connection.execute(f"VACUUM ANALYZE {table}")


def _copy_rows(integers: Mapping[str, Integers], vectors: Floats) -> bytes:
    """Lay rows out as COPY BINARY wants them; a row in Python would take longer than the server."""
    dimensions = vectors.shape[1]
    fields: list[tuple[str, str]] = [("fields", ">i2")]
    for name in integers:
        fields += [(f"{name} length", ">i4"), (name, ">i4")]
    fields += [("vector length", ">i4"), ("dimensions", ">i2"), ("unused", ">i2")]
    layout = np.dtype([*fields, ("vector", ">f4", (dimensions,))])
    rows = np.zeros(len(vectors), dtype=layout)
    rows["fields"] = len(integers) + 1
    for name, column in integers.items():
        rows[f"{name} length"] = 4
        rows[name] = column
    rows["vector length"] = 4 + 4 * dimensions
    rows["dimensions"] = dimensions
    rows["vector"] = vectors
    return rows.tobytes()


def _unit(vectors: NDArray[np.floating]) -> Floats:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: Floats = (vectors / lengths).astype(np.float32)
    return unit
