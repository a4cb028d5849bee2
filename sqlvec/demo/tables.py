"""The tables of the demo, as an application would declare them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlvec.encoders import Binary
from sqlvec.schema import BM25, FDE, Quantized, attach
from sqlvec.types import MULTIVECTOR, VECTOR, MultiVector

SCHEMA = "sqlvec_demo"
"""Everything that the demo makes is in this schema."""


class Tables:
    """Models for vectors of a given length.

    :param dimensions: of the text model.
    """

    entry: type[Any]
    """One documented object, its vector, and the code of that vector."""

    question: type[Any]
    """What was asked, so that a query in psql can refer to its vector."""

    metadata: MetaData

    def __init__(self, dimensions: int) -> None:
        class Base(DeclarativeBase):
            metadata = MetaData(schema=SCHEMA)

        class Entry(Base):
            __tablename__ = "entry"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(unique=True)
            kind: Mapped[str]
            signature: Mapped[str]
            body: Mapped[str]
            embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(dimensions))
            __table_args__ = (Quantized("embedding", Binary(), metric="cosine"),)

        class Question(Base):
            __tablename__ = "question"
            id: Mapped[int] = mapped_column(primary_key=True)
            text: Mapped[str]
            embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(dimensions))

        self.entry = Entry
        self.question = Question
        self.metadata = Base.metadata
        attach(self.metadata, create_extension=True)


class TextTables:
    """The model for words."""

    entry: type[Any]
    """One documented object, with the words of its name and of its documentation."""

    metadata: MetaData

    def __init__(self) -> None:
        class Base(DeclarativeBase):
            metadata = MetaData(schema=SCHEMA)

        class TextEntry(Base):
            __tablename__ = "text_entry"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(unique=True)
            kind: Mapped[str]
            signature: Mapped[str]
            body: Mapped[str]
            words = BM25({"name": 2.0, "body": 1.0}, target="words")
            __table_args__ = (words,)
            __mapper_args__ = {"exclude_properties": words.columns}

        self.entry = TextEntry
        self.metadata = Base.metadata
        attach(self.metadata, create_extension=True)


class TokenTables:
    """Models for token vectors of a given length.

    :param dimensions: of a token vector.
    """

    entry: type[Any]
    """One documented object, its token vectors, and their fixed dimensional encoding."""

    question: type[Any]
    """What was asked, so that a query in psql can refer to its token vectors."""

    metadata: MetaData

    def __init__(self, dimensions: int) -> None:
        class Base(DeclarativeBase):
            metadata = MetaData(schema=SCHEMA)

        class TokenEntry(Base):
            __tablename__ = "token_entry"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(unique=True)
            kind: Mapped[str]
            signature: Mapped[str]
            body: Mapped[str]
            tokens: Mapped[MultiVector] = mapped_column(MULTIVECTOR(dimensions), deferred=True)
            encoding = FDE("tokens")
            __table_args__ = (encoding,)
            __mapper_args__ = {"exclude_properties": [encoding.target]}

        class TokenQuestion(Base):
            __tablename__ = "token_question"
            id: Mapped[int] = mapped_column(primary_key=True)
            text: Mapped[str]
            tokens: Mapped[MultiVector] = mapped_column(MULTIVECTOR(dimensions))

        self.entry = TokenEntry
        self.question = TokenQuestion
        self.metadata = Base.metadata
        attach(self.metadata, create_extension=True)


class HybridTables:
    """Models for words and for vectors of a given length.

    :param dimensions: of the text model.
    """

    entry: type[Any]
    """One documented object, its words, its vector, and the code of that vector."""

    title: type[Any]
    """Names of some entries as questions, which the relevance is fitted to."""

    question: type[Any]
    """What was asked, so that a query in psql can refer to its vector."""

    metadata: MetaData

    def __init__(self, dimensions: int) -> None:
        class Base(DeclarativeBase):
            metadata = MetaData(schema=SCHEMA)

        class HybridEntry(Base):
            __tablename__ = "hybrid_entry"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(unique=True)
            kind: Mapped[str]
            signature: Mapped[str]
            body: Mapped[str]
            embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(dimensions))
            words = BM25({"name": 2.0, "body": 1.0}, target="words")
            __table_args__ = (Quantized("embedding", Binary(), metric="cosine"), words)
            __mapper_args__ = {"exclude_properties": words.columns}

        class HybridTitle(Base):
            __tablename__ = "hybrid_title"
            id: Mapped[int] = mapped_column(primary_key=True)
            text: Mapped[str]
            embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(dimensions))

        class HybridQuestion(Base):
            __tablename__ = "hybrid_question"
            id: Mapped[int] = mapped_column(primary_key=True)
            text: Mapped[str]
            embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(dimensions))

        self.entry = HybridEntry
        self.title = HybridTitle
        self.question = HybridQuestion
        self.metadata = Base.metadata
        attach(self.metadata, create_extension=True)
