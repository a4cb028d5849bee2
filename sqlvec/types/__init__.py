"""Column types: pgvector's own, and what sqlvec needs to know about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgvector import HalfVector, SparseVector, Vector
from pgvector.sqlalchemy import BIT, HALFVEC, SPARSEVEC, VECTOR
from sqlalchemy import ARRAY, Enum, LargeBinary, String, event
from sqlalchemy.dialects.postgresql import BIT as PG_BIT
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlvec.errors import MissingRequirement
from sqlvec.types.multivector import MULTIVECTOR, MultiVector

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "BIT",
    "HALFVEC",
    "MULTIVECTOR",
    "SPARSEVEC",
    "TSVECTOR",
    "VECTOR",
    "MultiVector",
    "dimensions",
    "from_sql",
    "register_asyncpg",
    "type_name",
]

_BY_NAME: dict[str, type[TypeEngine[Any]]] = {
    "vector": VECTOR,
    "halfvec": HALFVEC,
    "sparsevec": SPARSEVEC,
    "bit": BIT,
    "bytea": LargeBinary,
}


def from_sql(code_type: str) -> TypeEngine[Any]:
    """Return the SQLAlchemy type that an encoder names, e.g. ``bit(384)``."""
    name, _, length = code_type.rstrip(")").partition("(")
    make: Any = _BY_NAME[name]
    type_: TypeEngine[Any] = make(int(length)) if length else make()
    return type_


def type_name(type_: TypeEngine[Any]) -> str | None:
    """Return ``vector``, ``halfvec``, ``sparsevec``, ``bit``, ``bytea``, ``tsvector`` or ``text``.

    An array of vectors is ``halfvec[]`` or ``vector[]``, every type of strings is ``text``; None
    stands for any other type.
    """
    found = _unwrapped(type_)
    if isinstance(found, MULTIVECTOR):
        return f"{found.element}[]"
    if isinstance(found, ARRAY):
        element = type_name(found.item_type)
        return f"{element}[]" if element in ("halfvec", "vector") else None
    if isinstance(found, PG_BIT):
        return "bit"
    if isinstance(found, TSVECTOR):
        return "tsvector"
    if isinstance(found, String):
        return None if isinstance(found, Enum) else "text"
    return next((name for name, known in _BY_NAME.items() if isinstance(found, known)), None)


def dimensions(type_: TypeEngine[Any]) -> int | None:
    """Return the dimensions that a vector or bit type names, or None."""
    found: Any = _unwrapped(type_)
    if isinstance(found, ARRAY):
        return dimensions(found.item_type)
    length: int | None = getattr(found, "length" if isinstance(found, PG_BIT) else "dim", None)
    return length


def _unwrapped(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Look beneath the decorators of an application, and pgvector's own on ``bit``."""
    while isinstance(type_, TypeDecorator):
        type_ = type_.impl_instance
    return type_


def register_asyncpg(engine: AsyncEngine) -> None:
    """Let every connection of an asyncpg engine exchange vectors in binary form.

    The types of this module need no registration: they send and read text. With it, vectors come
    back without being parsed, and values of statements that name no types may be pgvector's
    ``Vector``, ``HalfVector`` and ``SparseVector``. Unlike ``pgvector.asyncpg.register_vector``
    it finds the extension in whatever schema it lives, and goes together with the types.

    E.g.::

        engine = create_async_engine("postgresql+asyncpg://…")
        register_asyncpg(engine)

    :raises MissingRequirement: on connecting, the database has no extension ``vector``.

    .. versionadded:: 0.1
    """

    @event.listens_for(engine.sync_engine, "connect")
    def _register(dbapi_connection: Any, _record: object) -> None:
        dbapi_connection.run_async(_set_codecs)


async def _set_codecs(connection: Any) -> None:
    schema = await connection.fetchval(
        "SELECT n.nspname FROM pg_catalog.pg_extension AS e"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    )
    if schema is None:
        raise MissingRequirement(
            "the database has no extension vector; run CREATE EXTENSION vector"
        )
    codecs: dict[str, Any] = {"vector": Vector, "halfvec": HalfVector, "sparsevec": SparseVector}
    for name, value_class in codecs.items():
        await connection.set_type_codec(
            name,
            schema=schema,
            encoder=_binary_encoder(value_class),
            decoder=value_class.from_binary,
            format="binary",
        )


def _binary_encoder(value_class: Any) -> Any:
    def encode(value: Any) -> bytes:
        if isinstance(value, str):  # what the SQLAlchemy types send
            value = value_class.from_text(value)
        elif not isinstance(value, value_class):
            value = value_class(value)
        encoded: bytes = value.to_binary()
        return encoded

    return encode
