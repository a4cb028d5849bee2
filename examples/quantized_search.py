"""A small application: notes with vectors, searched through a quantized column, sync and async.

Run it on a server of its own, or on a database that has pgvector::

    python examples/quantized_search.py
    python examples/quantized_search.py postgresql://postgres@localhost/test

A real application takes its vectors from an embedding model. Here they are made from the words
themselves, so that the example needs nothing else.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256

import numpy as np
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlvec.embedded import Server
from sqlvec.encoders import Binary
from sqlvec.schema import Quantized, attach
from sqlvec.search import vector_search
from sqlvec.types import VECTOR

DIMENSIONS = 256

NOTES = (
    ("garden", "tomatoes need water every morning in summer"),
    ("garden", "prune the apple tree in late winter"),
    ("garden", "sow carrots when the soil is warm"),
    ("kitchen", "simmer tomatoes slowly for a thick sauce"),
    ("kitchen", "bake the apple pie until it is golden"),
    ("kitchen", "grate carrots for the salad"),
)


class Base(DeclarativeBase):
    """Models of this application."""


codes = Quantized("embedding", Binary(), metric="cosine")


class Note(Base):
    """A line of text and its vector; the database keeps the code beside it."""

    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    topic: Mapped[str]
    body: Mapped[str]
    embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(DIMENSIONS))
    __table_args__ = (codes, codes.index())


attach(Base.metadata, create_extension=True)


def embed(text: str) -> list[float]:
    """Return the sum of one fixed random direction per word."""
    total = np.zeros(DIMENSIONS)
    for word in text.split():
        seed = int.from_bytes(sha256(word.encode()).digest()[:8])
        total += np.random.default_rng(seed).standard_normal(DIMENSIONS)
    vector: list[float] = total.tolist()
    return vector


def load(url: str) -> None:
    """Create the tables anew and write the notes."""
    engine = create_engine(url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            Note(topic=topic, body=body, embedding=embed(body)) for topic, body in NOTES
        )
        session.commit()
    engine.dispose()


def search(url: str, words: str) -> list[str]:
    """Return the two notes nearest to a text."""
    engine = create_engine(url)
    with Session(engine) as session:
        found = [note.body for note, _ in session.execute(vector_search(Note, embed(words), k=2))]
    engine.dispose()
    return found


async def search_topic(url: str, words: str, topic: str) -> list[str]:
    """Return the two notes of one topic that are nearest to a text."""
    engine = create_async_engine(url)
    statement = vector_search(Note, embed(words), k=2, where=[Note.topic == topic])
    async with AsyncSession(engine) as session:
        found = [note.body for note, _ in await session.execute(statement)]
    await engine.dispose()
    return found


@contextmanager
def database(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the address given as argument, or that of a temporary server."""
    if arguments:
        yield arguments[0]
    else:
        with Server() as server:
            yield server.dsn()


def main() -> None:
    """Load the notes and search them twice."""
    with database(sys.argv[1:]) as address:
        url = make_url(address).set(drivername="postgresql+psycopg")
        location = url.render_as_string(hide_password=False)
        load(location)
        print("tomatoes:", search(location, "tomatoes"))
        print("apple, in the kitchen:", asyncio.run(search_topic(location, "apple", "kitchen")))


if __name__ == "__main__":
    main()
