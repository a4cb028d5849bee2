"""Texts to search in: random ones with the word frequencies of a language, from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.server import Connection

# Text search configuration english drops these; both sides of a benchmark read past them.
STOP_WORDS = ("the", "of", "and", "to", "a", "in", "is", "that", "it", "was", "for", "with", "as")

_ONSETS = (
    *("b", "bl", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n"),
    *("p", "pl", "pr", "qu", "r", "s", "sh", "sl", "st", "t", "th", "tr", "v", "w", "z"),
)
_VOWELS = ("a", "e", "i", "o", "u", "ea", "ou")
_CODAS = ("", "", "", "l", "m", "n", "nd", "r", "rt", "s", "ck", "t")
_ENDINGS = ("", "", "", "", "", "s", "ed", "ing", "er", "ly", "ness", "ation")
_BATCH = 10_000


@dataclass(frozen=True)
class Corpus:
    """Documents numbered 1, 2, … of which a smaller set is the beginning of a larger one.

    The word of rank r has frequency 1 / (r + offset) ** exponent. Every fifth word on average is a
    stop word more. Lengths are log-normal.

    :param words: mean number of words of a document, stop words not counted.
    :param offset: 0 is Zipf's law, where the most frequent words stand in nearly every document;
        about 30 is English without its stop words.
    """

    words: int = 67
    vocabulary: int = 300_000
    exponent: float = 1.0
    offset: float = 0.0
    seed: int = 0

    def documents(self, rows: int) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of the first documents."""
        for batch in range(-(-rows // _BATCH)):
            first = 1 + batch * _BATCH
            for number, words in enumerate(self._batch(batch), first):
                if number > rows:
                    return
                yield number, " ".join(words)

    def queries(self, count: int = 100, shortest: int = 1, longest: int = 8) -> list[list[str]]:
        """Return lists of different words, drawn from places of one document each.

        A word that a document repeats is drawn more often; stop words are not.
        """
        random = np.random.default_rng([self.seed, 1])
        contents = [[word for word in words if word not in STOP_WORDS] for words in self._batch(0)]
        queries: list[list[str]] = []
        while len(queries) < count:
            words = contents[random.integers(len(contents))]
            # Lengths in turn: every length has its share, however few queries are asked.
            length = shortest + len(queries) % (longest - shortest + 1)
            drawn = list(dict.fromkeys(words[place] for place in random.permutation(len(words))))
            if len(drawn) >= length:
                queries.append(drawn[:length])
        return queries

    @cached_property
    def _words(self) -> NDArray[np.object_]:
        """The stop words, then the vocabulary by falling frequency."""
        random = np.random.default_rng([self.seed, 2])
        words = dict.fromkeys(STOP_WORDS)
        wanted = len(STOP_WORDS) + self.vocabulary
        for rank in range(10 * self.vocabulary):
            # Frequent words are short.
            syllables = random.integers(1, 3) if rank < 500 else random.integers(2, 5)
            parts = [
                f"{_pick(random, _ONSETS)}{_pick(random, _VOWELS)}{_pick(random, _CODAS)}"
                for _ in range(syllables)
            ]
            words["".join(parts) + _pick(random, _ENDINGS)] = None
            if len(words) == wanted:
                return np.array(list(words), dtype=object)
        raise ValueError(f"there are not {self.vocabulary} words to make")

    @cached_property
    def _cumulated(self) -> NDArray[np.float64]:
        frequency = (np.arange(1, self.vocabulary + 1) + self.offset) ** -self.exponent
        cumulated = np.cumsum(frequency)
        return np.asarray(cumulated / cumulated[-1])

    def _batch(self, number: int) -> Iterator[list[str]]:
        random = np.random.default_rng([self.seed, 0, number])
        spread = 0.5
        mean = np.log(self.words * 1.25) - spread**2 / 2
        lengths = np.maximum(1, random.lognormal(mean, spread, _BATCH).astype(np.int64))
        total = int(lengths.sum())
        ranks = len(STOP_WORDS) + np.searchsorted(self._cumulated, random.random(total))
        stop = random.random(total) < 0.2
        ranks[stop] = random.integers(0, len(STOP_WORDS), int(stop.sum()))
        words = self._words[ranks].tolist()
        end = 0
        for length in lengths.tolist():
            start, end = end, end + length
            yield words[start:end]


def _pick(random: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[random.integers(len(choices))]


def create_table(connection: Connection, table: str, corpus: Corpus, rows: int) -> None:
    """Create a table of documents and fill it; ``tenant_id`` has 100 values, spread evenly."""
    connection.execute(
        f"CREATE TABLE {table} (id int PRIMARY KEY, tenant_id int NOT NULL, body text)"
    )
    with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
        for number, text in corpus.documents(rows):
            # Words hold no character that COPY would read as its own.
            copy.write(f"{number}\t{number % 100}\t{text}\n")
