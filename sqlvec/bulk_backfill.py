"""Backfill with codes computed by numpy, read and written in binary COPY.

Several times as fast as the server for multi-vectors, and needs none of its processors. It only
goes ahead: whatever it cannot encode, finds locked or must not touch stays as it is, and
``sqlvec.backfill``, which always runs afterwards, finishes it or says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sqlvec import catalog
from sqlvec.encoders import Hubness
from sqlvec.errors import EncodingError
from sqlvec.types.multivector import ElementType, MultiVector, from_binary, to_binary

if TYPE_CHECKING:
    import psycopg

PROGRESS = text("""
    SELECT 'encoding' AS phase, sum(blocks_done) AS done, sum(blocks_total) AS total
    FROM sqlvec.backfill_progress
    WHERE relation = CAST(:oid AS oid)
      AND (CAST(:target AS text) IS NULL OR target_column = CAST(:target AS text))
""")
"""How far the backfill of a table is, in blocks."""

Report: TypeAlias = Callable[[int, int], None]
"""What is called with the blocks that are done, and with how many there are."""

Encode: TypeAlias = Callable[[MultiVector], bytes]
"""From the multi-vector (n, d) of a row, one vector being (1, d), to its code, in the binary form
of the code's type. What it refuses with an EncodingError is left to the server, whose refusal names
table and column."""


def _load_fde(connection: Connection, encoder: str) -> Encode:
    fde, parts = catalog.load_fde(connection, encoder)
    nothing = np.zeros(fde.dimensions, dtype=bool if fde.bits else np.float16)

    def encode(tokens: MultiVector) -> bytes:
        code = fde.document(tokens, parts) if tokens.size else nothing
        if fde.bits:
            return code.size.to_bytes(4, "big") + np.packbits(code.astype(bool)).tobytes()
        return code.size.to_bytes(2, "big") + b"\0\0" + code.astype(">f2").tobytes()

    return encode


def _load_centroid(connection: Connection, encoder: str) -> Encode:
    centroid, parts = catalog.load_centroid(connection, encoder)
    return lambda tokens: centroid.document(tokens, parts)


def _load_pool(connection: Connection, encoder: str) -> Encode:
    pool = catalog.load_pool(connection, encoder)
    element: int = connection.execute(_HALFVEC).scalar_one()
    return lambda tokens: to_binary(pool.document(tokens), element)


def _load_hubness(connection: Connection, encoder: str) -> Encode:
    hubness, parts = catalog.load_encoder(connection, encoder)

    def encode(vector: MultiVector) -> bytes:
        code = hubness.encode(vector[0], parts)
        return code.size.to_bytes(2, "big") + b"\0\0" + code.astype(">f4").tobytes()

    return encode


_LOADERS: Mapping[str, Callable[[Connection, str], Encode]] = {
    "centroid": _load_centroid,
    "fde": _load_fde,
    "hubness": _load_hubness,
    "pool": _load_pool,
}
"""By kind of encoder: how it is read from the catalog."""

_HALFVEC = text("""
    SELECT t.oid FROM pg_catalog.pg_extension AS e
    JOIN pg_catalog.pg_type AS t ON t.typnamespace = e.extnamespace
    WHERE e.extname = 'vector' AND t.typname = 'halfvec'
""")
_COLUMNS = text("SELECT * FROM sqlvec._bulk_columns(CAST(:oid AS oid), :target)")
_READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
_BEGIN = (
    "SELECT block, end_block, step, sweep"
    " FROM sqlvec._begin_sweep(%s, %s, %s, false, current_setting('search_path'))"
)
_READ = (
    "COPY (SELECT * FROM sqlvec._bulk_read(%s, %s, %s, %s, %s, %s, %s)) TO STDOUT (FORMAT binary)"
)
_CODES = 'COPY pg_temp."sqlvec codes" FROM STDIN (FORMAT binary)'
_WRITE = "SELECT sqlvec._bulk_write(%s, %s)"
_GO_ON = "SELECT block, step FROM sqlvec._go_on(%s, %s, %s, %s, %s, %s, %s, %s)"


def fill(connection: Connection, oid: int, target: str | None, batch: int, report: Report) -> None:
    """Encode what waits in the columns of a table whose encoders have a twin in numpy.

    Each batch is a transaction that locks the rows it reads until their codes are written.

    :param connection: in AUTOCOMMIT; of another driver than psycopg, nothing is done.
    :param oid: of the table.
    :param target: one derived column; None is every derived column of the table.
    :param batch: rows per transaction.
    :param report: called whenever a block is done.
    """
    if connection.dialect.driver != "psycopg" or batch < 1:
        return
    import psycopg

    where = {"oid": oid, "target": target}

    def blocks() -> tuple[int, int]:
        row = connection.execute(PROGRESS, where).one()
        return int(row.done), int(row.total)

    for column in connection.execute(_COLUMNS, where).all():
        if column.kind not in _LOADERS:
            continue
        encode = _LOADERS[column.kind](connection, column.encoder)
        driver: Any = connection.connection.driver_connection
        element: ElementType = "vector" if column.kind == Hubness.kind else "halfvec"
        sweep = _Sweep(
            driver, column.derived_id, column.encoder, column.leaf, element, encode, batch
        )
        try:
            sweep.run(blocks, report)
            # Over what the first has appended: nothing waits there, unless it was loaded meanwhile.
            sweep.run(blocks, lambda done, total: None)
        except psycopg.DataError:
            # A value that cannot even be read as halfvec: the server names its table and column.
            continue
        except psycopg.Error as error:
            raise DBAPIError(None, None, error) from error


@dataclass(frozen=True, slots=True)
class _Sweep:
    """Passes over one leaf table, for one derived column."""

    connection: psycopg.Connection[Any]
    derived_id: int
    encoder: str
    leaf: int
    element: ElementType
    encode: Encode
    batch: int

    def run(self, blocks: Callable[[], tuple[int, int]], report: Report) -> None:
        """Go from where the last pass stopped to the present end of the table."""
        with self._transaction():
            first, end, step, whole = self._row(_BEGIN, self.derived_id, self.leaf, self.batch)
        if first is None:
            return
        done, total = blocks()

        def reached(block: int) -> None:
            report(done + min(block, end) - first, total)

        block = first
        while block < end:
            with self._transaction():
                block, step = self._run_batch(block, step, whole, reached)
            reached(block)

    def _run_batch(
        self, block: int, step: int, whole: bool, reached: Callable[[int], None]
    ) -> tuple[int, int]:
        """Encode one batch; return the block to go on from, and how many to take then.

        :param whole: read the blocks, rather than the index over the rows that wait.
        """
        codes: list[tuple[bytes, bytes]] = []
        rows = 0
        last = block
        read = (self.derived_id, self.encoder, self.leaf, block, block + step, self.batch, whole)
        with self.connection.cursor() as cursor:
            with cursor.copy(_READ, read) as copy:
                for tid, source in copy.rows():
                    rows += 1
                    if (own := int.from_bytes(tid[:4], "big")) > last:
                        last = own
                        reached(last)
                    with suppress(EncodingError):
                        codes.append((tid, self.encode(from_binary(source, self.element))))
            if codes:
                with cursor.copy(_CODES) as copy:
                    for code in codes:
                        copy.write_row(code)
        (written,) = self._row(_WRITE, self.derived_id, self.leaf) if codes else (0,)
        state = (self.derived_id, self.leaf, block, step, self.batch, rows, written, last)
        block, step = self._row(_GO_ON, *state)
        return block, step

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Begin one that sees what others commit, names above all, whatever the default."""
        with self.connection.transaction():
            self.connection.execute(_READ_COMMITTED)
            yield

    def _row(self, statement: str, *parameters: object) -> Any:
        # Not prepared: behind a pooler the next statement may run on another session.
        return self.connection.execute(statement, parameters, prepare=False).fetchone()
