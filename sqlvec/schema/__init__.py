"""Declare derived columns on models and tables.

E.g.::

    class Doc(Base):
        __tablename__ = "doc"
        id: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[list[float]] = mapped_column(VECTOR(384))
        codes = Quantized("embedding", Binary())
        __table_args__ = (
            codes,
            codes.index(),
        )
"""

from __future__ import annotations

from sqlvec.ddl import attach
from sqlvec.schema.derived import Derived, declarations, derived_columns
from sqlvec.schema.quantized import Quantized

__all__ = ["Derived", "Quantized", "attach", "declarations", "derived_columns"]
