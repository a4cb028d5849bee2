"""Multi-vectors: the token vectors of one text or image, as an array of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import Dialect, String
from sqlalchemy.types import UserDefinedType

from sqlvec.encoders.base import to_halfvec
from sqlvec.errors import DeclarationError, EncodingError

MultiVector: TypeAlias = NDArray[np.float32]
"""What a :class:`MULTIVECTOR` column holds: shape (n, d)."""

ElementType = Literal["halfvec", "vector"]

_LARGEST = {"halfvec": ">f2", "vector": ">f4"}


class MULTIVECTOR(UserDefinedType[MultiVector]):
    """Column of multi-vectors: ``halfvec(d)[]``, or ``vector(d)[]``.

    E.g.::

        tokens: Mapped[MultiVector] = mapped_column(MULTIVECTOR(128))

    Values are numpy arrays of shape (n, d), or lists of equally long lists; they come back as
    float32. Token vectors hardly compress: have them stored as they are with
    :class:`sqlvec.ddl.StoreExternal`, which ``sqlvec.add_fde`` does by itself.

    :param dim: dimensions of every vector; None leaves them open.
    :param element: ``halfvec``, or ``vector`` where float16 is too coarse.
    :raises DeclarationError: there is no such type of vectors.

    .. versionadded:: 0.1
    """

    cache_ok = True
    _string = String()

    def __init__(self, dim: int | None = None, element: ElementType = "halfvec") -> None:
        super().__init__()
        if element not in get_args(ElementType):
            raise DeclarationError(f"a multi-vector is made of halfvec or vector, not {element!r}")
        self.dim = dim
        self.element = element

    def get_col_spec(self, **kw: Any) -> str:
        """Return ``halfvec(d)[]``."""
        return f"{self.element}[]" if self.dim is None else f"{self.element}({self.dim})[]"

    @property
    def python_type(self) -> type[Any]:
        """``numpy.ndarray``."""
        return np.ndarray

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Send text; asyncpg takes an array as a list of its elements."""
        make = to_rows if dialect.driver == "asyncpg" else to_text

        def process(value: Any) -> Any:
            return None if value is None else make(value, self.dim, self.element)

        return process

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        """Render the text of an array, quoted."""
        string: Any = self._string
        quote = string.literal_processor(dialect)

        def process(value: Any) -> str:
            literal: str = quote(to_text(value, self.dim, self.element))
            return f"{literal}::{self.get_col_spec()}"

        return process

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[Any], MultiVector | None]:
        """Read text, or what a registered adapter has made of it."""

        def process(value: Any) -> MultiVector | None:
            return None if value is None else from_database(value, self.dim)

        return process

    def compare_values(self, x: Any, y: Any) -> bool:
        """Compare as a whole: an array of comparisons is neither true nor false."""
        if x is None or y is None:
            return x is y
        return np.array_equal(np.asarray(x), np.asarray(y))


def checked_tokens(
    value: ArrayLike, dim: int | None = None, element: ElementType = "halfvec"
) -> NDArray[Any]:
    """Return a multi-vector as float16 or float32 of shape (n, d).

    :param dim: dimensions that it must have; None takes any.
    :raises EncodingError: it is empty or ragged, has other dimensions, NaN or infinity, or a value
        that the element type cannot hold.
    """
    try:
        with np.errstate(over="ignore"):
            tokens = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EncodingError(
            f"a multi-vector is an array (n, d), or a list of equally long lists: {error}"
        ) from None
    if tokens.ndim != 2:
        if tokens.size == 0:
            raise EncodingError("a multi-vector has at least one vector; None stands for none")
        raise EncodingError(f"a multi-vector has 2 dimensions (n, d), found {tokens.ndim}")
    if 0 in tokens.shape:
        raise EncodingError("a multi-vector has at least one vector; None stands for none")
    if dim not in (None, tokens.shape[1]):
        raise EncodingError(f"expected vectors of {dim} dimensions, found {tokens.shape[1]}")
    if not np.isfinite(tokens).all():
        raise EncodingError(
            "NaN, infinity or a value out of the range of float32 in a multi-vector"
        )
    return to_halfvec(tokens) if element == "halfvec" else tokens


def to_text(value: ArrayLike, dim: int | None = None, element: ElementType = "halfvec") -> str:
    """Return the text of a multi-vector, ``{"[1.0, 2.0]","[3.0, 4.0]"}``."""
    # A list of lists of floats prints itself, in C, in the form of vectors.
    printed = str(checked_tokens(value, dim, element).tolist())
    return '{"' + printed[1:-1].replace("], [", ']","[') + '"}'


def to_rows(
    value: ArrayLike, dim: int | None = None, element: ElementType = "halfvec"
) -> list[str]:
    """Return the texts of the vectors of a multi-vector."""
    printed = str(checked_tokens(value, dim, element).tolist())
    return [f"[{row}]" for row in printed[2:-2].split("], [")]


def to_binary(
    value: ArrayLike, oid: int, dim: int | None = None, element: ElementType = "halfvec"
) -> bytes:
    """Return a multi-vector in the binary form of a PostgreSQL array, for COPY.

    :param oid: of the element type in this database.
    """
    tokens = checked_tokens(value, dim, element)
    n, d = tokens.shape
    numbers = np.dtype((_LARGEST[element], (d,)))
    layout = np.dtype([("length", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("values", numbers)])
    elements = np.zeros(n, dtype=layout)
    elements["length"] = layout.itemsize - 4
    elements["dim"] = d
    elements["values"] = tokens
    # Dimensions of the array, no NULLs, element type; then length and lower bound.
    header = np.array([1, 0, oid, n, 1], dtype=">u4")
    return header.tobytes() + elements.tobytes()


def from_binary(
    data: bytes | bytearray | memoryview, element: ElementType = "halfvec"
) -> MultiVector:
    """Return the multi-vector that a binary array holds.

    :raises EncodingError: it has NULLs or vectors of different dimensions.
    """
    header = np.frombuffer(data, dtype=">i4", count=3)
    if header[0] == 0:
        return np.zeros((0, 0), dtype=np.float32)
    (n,) = np.frombuffer(data, dtype=">i4", count=1, offset=12)
    start = 12 + 8 * int(header[0])
    if header[0] != 1 or header[1] != 0:
        raise EncodingError("an array with NULLs or several dimensions is no multi-vector")
    (d,) = np.frombuffer(data, dtype=">i2", count=1, offset=start + 4)
    numbers = np.dtype((_LARGEST[element], (int(d),)))
    layout = np.dtype([("length", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("values", numbers)])
    if len(data) != start + int(n) * layout.itemsize:
        raise EncodingError("the vectors of a multi-vector have different dimensions")
    elements = np.frombuffer(data, dtype=layout, count=int(n), offset=start)
    if (elements["dim"] != d).any():
        raise EncodingError("the vectors of a multi-vector have different dimensions")
    return elements["values"].astype(np.float32)


_PUNCTUATION = str.maketrans("", "", '{}"')


def from_text(value: str) -> MultiVector:
    """Return the multi-vector that the text of an array holds.

    :raises EncodingError: it has NULLs or vectors of different dimensions.
    """
    # An array whose subscripts do not begin at 1 names them first: [0:1]={…}.
    plain = value[value.index("{") :].translate(_PUNCTUATION)
    if not plain:
        return np.zeros((0, 0), dtype=np.float32)
    if "N" in plain:
        raise EncodingError("an array with NULLs is no multi-vector")
    rows = plain[1:-1].split("],[")
    if len({row.count(",") for row in rows}) != 1:
        raise EncodingError("the vectors of a multi-vector have different dimensions")
    return np.fromstring(",".join(rows), dtype=np.float32, sep=",").reshape(len(rows), -1)


def from_database(value: Any, dim: int | None = None) -> MultiVector:
    """Return the multi-vector in a value of a driver: text, a list of texts or of vectors."""
    if isinstance(value, np.ndarray):
        tokens: MultiVector = value.astype(np.float32, copy=False)
    elif isinstance(value, str):
        tokens = from_text(value)
    elif all(isinstance(row, str) for row in value):
        tokens = from_text("{" + ",".join(value) + "}")
    else:
        if any(row is None for row in value):
            raise EncodingError("an array with NULLs is no multi-vector")
        # pgvector's own types, which drivers make once they are registered.
        tokens = np.array([getattr(row, "to_numpy", lambda row=row: row)() for row in value])
        tokens = tokens.astype(np.float32)
    return tokens if tokens.size else np.zeros((0, dim or 0), dtype=np.float32)
