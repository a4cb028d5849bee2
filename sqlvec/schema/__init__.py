"""Declare derived columns on models and tables.

E.g.::

    class Doc(Base):
        __tablename__ = "doc"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        embedding: Mapped[list[float]] = mapped_column(VECTOR(384))
        codes = Quantized("embedding", Binary())
        text = BM25("body", config="english")
        __table_args__ = (
            codes,
            codes.index(),
            text,
            text.index(),
        )
"""

from __future__ import annotations

from sqlvec.ddl import attach
from sqlvec.schema.bm25 import BM25
from sqlvec.schema.centroid import Centroid
from sqlvec.schema.derived import Derived, declarations, derived_columns
from sqlvec.schema.fde import FDE
from sqlvec.schema.hubness import Hubness
from sqlvec.schema.pooled import Pooled
from sqlvec.schema.quantized import Quantized

__all__ = [
    "BM25",
    "FDE",
    "Centroid",
    "Derived",
    "Hubness",
    "Pooled",
    "Quantized",
    "attach",
    "declarations",
    "derived_columns",
]
