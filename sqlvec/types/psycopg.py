"""Multi-vectors on connections of psycopg, in binary and as numpy arrays."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.pq import Format
from psycopg.types import TypeInfo

from sqlvec.errors import MissingRequirement
from sqlvec.types.multivector import ElementType, MultiVector, from_binary, from_text, to_binary

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

_TYPES = (
    "SELECT t.typname, t.oid, t.typarray FROM pg_catalog.pg_extension AS e"
    " JOIN pg_catalog.pg_type AS t ON t.typnamespace = e.extnamespace"
    " WHERE e.extname = 'vector' AND t.typname IN ('halfvec', 'vector') ORDER BY t.typname"
)


def register_multivectors(connection: Connection[Any]) -> None:
    """Let a psycopg connection read multi-vectors as numpy arrays, and COPY them in binary.

    E.g.::

        register_multivectors(connection)
        with cursor.copy("COPY doc (id, tokens) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int8", "halfvec[]"])
            for id, tokens in documents:  # (n, d) float32
                copy.write_row((id, tokens))

    :raises MissingRequirement: the database has no extension ``vector``.

    .. versionadded:: 0.1
    """
    _register(connection, connection.execute(_TYPES).fetchall())


async def register_multivectors_async(connection: AsyncConnection[Any]) -> None:
    """Do the same for an asynchronous connection.

    .. versionadded:: 0.1
    """
    _register(connection, await (await connection.execute(_TYPES)).fetchall())


def _register(connection: Any, types: list[Any]) -> None:
    if not types:
        raise MissingRequirement(
            "the database has no extension vector; run CREATE EXTENSION vector"
        )
    for name, oid, array_oid in types:
        TypeInfo(name, oid, array_oid).register(connection)
        connection.adapters.register_loader(array_oid, _text_loader())
        connection.adapters.register_loader(array_oid, _binary_loader(name))
        # Found by its oid alone: numpy arrays are also what pgvector sends as one vector.
        connection.adapters.register_dumper(None, _binary_dumper(name, oid, array_oid))


# One class for each oid: psycopg keeps the classes that it has seen.


@cache
def _text_loader() -> type[Loader]:
    class MultiVectorLoader(Loader):
        format = Format.TEXT

        def load(self, data: Buffer) -> MultiVector:
            return from_text(bytes(data).decode())

    return MultiVectorLoader


@cache
def _binary_loader(element: ElementType) -> type[Loader]:
    class MultiVectorBinaryLoader(Loader):
        format = Format.BINARY

        def load(self, data: Buffer) -> MultiVector:
            return from_binary(data, element)

    return MultiVectorBinaryLoader


@cache
def _binary_dumper(element: ElementType, element_oid: int, array_oid: int) -> type[Dumper]:
    class MultiVectorBinaryDumper(Dumper):
        format = Format.BINARY
        oid = array_oid

        def dump(self, obj: Any) -> bytes:
            return to_binary(obj, element_oid, element=element)

    return MultiVectorBinaryDumper
