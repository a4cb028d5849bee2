"""Pooling: fewer vectors for a multi-vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqlvec.encoders.base import checked_vectors, to_halfvec
from sqlvec.encoders.grid import coarse, norms_of, rounded
from sqlvec.errors import DeclarationError, EncodingError

Method = Literal["hierarchical", "kmeans", "sequential", "rows", "tiles", "top", "prefix"]

Tokens: TypeAlias = NDArray[np.float16]

MAX_HIERARCHICAL = 4_096
"""The most tokens whose distances to each other hierarchical pooling keeps."""

_DEFAULTS: Mapping[str, Mapping[str, int | float | None]] = {
    "hierarchical": {"factor": 2, "protected": 1, "normalize": False},
    "kmeans": {
        "factor": 2,
        "clusters": None,
        "iterations": 20,
        "protected": 1,
        "normalize": False,
    },
    "sequential": {"factor": 2, "protected": 1, "normalize": False},
    "rows": {
        "width": 32,
        "height": None,
        "max_rows": None,
        "window": 1,
        "protected": 0,
        "normalize": False,
    },
    "tiles": {"tile": 64, "protected": 0, "normalize": False},
    "top": {"share": 0.6},
    "prefix": {"tokens": 16},
}

_RANGES = {
    "factor": (2, 1000),
    "clusters": (1, 10_000),
    "iterations": (1, 100),
    "protected": (0, 1000),
    "width": (1, 1000),
    "height": (1, 1000),
    "max_rows": (1, 1000),
    "window": (1, 99),
    "tile": (2, 1000),
    "tokens": (1, 10_000),
}


@dataclass(frozen=True)
class Pool:
    """Replace token vectors that resemble each other by their mean, or keep only some of them.

    Clavié, Chaffin and Adams 2024 (arXiv:2409.14683) for the first three methods. A mean is not
    made a unit vector again unless ``normalize`` says so: a group of tokens that disagree then
    weighs less. Only documents are pooled, never queries.

    E.g.::

        pool = Pool("hierarchical", factor=3)
        pool.documents([tokens, more_tokens])  # a third of the vectors of each, float16

    The methods, each with its options:

    - ``hierarchical`` (``factor``, ``protected``): Ward's clustering by cosine distance, one
      cluster for every ``factor`` tokens; at most 4,096 tokens.
    - ``kmeans`` (``factor`` or ``clusters``, ``iterations``, ``protected``): spherical k-means
      from evenly spaced tokens.
    - ``sequential`` (``factor``, ``protected``): runs of ``factor`` tokens.
    - ``rows`` (``width``, ``height``, ``max_rows``, ``window``, ``protected``): the rows of a page
      image; tokens before and after the image stay as they are.
    - ``tiles`` (``tile``, ``protected``): runs of ``tile`` patches.
    - ``top`` (``share``): the tokens of largest weight.
    - ``prefix`` (``tokens``): the first tokens, for models that put what matters most first.

    All that take means have ``normalize`` too. The vectors equal those of ``sqlvec.pool``, to the
    last bit; normalized ones to one unit in the last place.

    :param method: see above.
    :param factor: how many tokens become one, 2 to 1000.
    :param clusters: the most vectors of a row, protected ones included, 1 to 10,000; takes the
        place of ``factor``.
    :param iterations: the most that k-means takes, 1 to 100.
    :param protected: leading tokens that are kept as they are, 0 to 1000.
    :param width: patches of one row of the image, 1 to 1000.
    :param height: rows of the image, 1 to 1000; None is as many as there are whole ones.
    :param max_rows: the most bins that the rows are put into, 1 to 1000.
    :param window: rows, or bins, that a sliding window covers, odd, 1 to 99; w gives w - 1 more.
    :param tile: patches of one tile, 2 to 1000.
    :param share: of the tokens that is kept, rounded up, 0.001 to 1.
    :param tokens: how many first ones are kept, 1 to 10,000.
    :param normalize: whether means are made unit vectors, as the tokens are.
    :raises DeclarationError: there is no such method, it has no such option, or a number is out of
        its range.

    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "pool"

    method: Method = "hierarchical"
    factor: int | None = None
    clusters: int | None = None
    iterations: int | None = None
    protected: int | None = None
    width: int | None = None
    height: int | None = None
    max_rows: int | None = None
    window: int | None = None
    tile: int | None = None
    share: float | None = None
    tokens: int | None = None
    normalize: bool | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise DeclarationError(
                f"unknown method of pooling {self.method!r}; the methods are: "
                f"{', '.join(get_args(Method))}"
            )
        defaults = _DEFAULTS[self.method]
        if self.clusters is not None:
            if self.factor is not None:
                raise DeclarationError("give option 'factor' or 'clusters', not both")
            defaults = {**defaults, "factor": None}
        for name in (*_RANGES, "share", "normalize"):
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, defaults.get(name))
            elif name not in defaults:
                raise DeclarationError(
                    f"pooling by method {self.method!r} has no option {name!r}; "
                    f"its options are: {', '.join(defaults)}"
                )
            else:
                _check_option(name, value)
        if self.clusters is not None and self.clusters <= (self.protected or 0):
            raise DeclarationError(
                f"option 'clusters' counts the protected tokens too: it is more than "
                f"{self.protected}, not {self.clusters}"
            )

    def __repr__(self) -> str:
        options = (f"{name}={value!r}" for name, value in self._given().items())
        return f"Pool({', '.join((repr(self.method), *options))})"

    def options(self) -> dict[str, Any]:
        """Return the options as the catalog stores them, the method among them."""
        return {"method": self.method, **self._given()}

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _DEFAULTS[self.method]}

    def code_type(self, source_dimensions: int) -> str:
        """Return ``halfvec(d)[]``."""
        return f"halfvec({source_dimensions})[]"

    def document(self, tokens: ArrayLike, weights: ArrayLike | None = None) -> Tokens:
        """Return the pooled vectors of one document, shape (m, d).

        :param tokens: its multi-vector, shape (n, d); without tokens the answer has none.
        :param weights: one number for each token, for method ``top``; None keeps all tokens.
        :raises EncodingError: NaN or infinity, a value out of range, or weights that do not fit.
        """
        vectors = _checked(tokens)
        if self.method == "top":
            return self._top(vectors, weights)
        if weights is not None:
            raise EncodingError(f"pooling by method {self.method!r} takes no weights")
        methods: dict[str, Callable[[Tokens], Tokens]] = {
            "hierarchical": self._hierarchical,
            "kmeans": self._kmeans,
            "sequential": self._sequential,
            "rows": self._rows,
            "tiles": self._sequential,
            "prefix": lambda found: found[: self.tokens],
        }
        return methods[self.method](vectors)

    def documents(
        self, batch: Iterable[ArrayLike], weights: Iterable[ArrayLike | None] | None = None
    ) -> list[Tokens]:
        """Return the pooled vectors of many documents; otherwise as :meth:`document`.

        :param weights: those of each document, for method ``top``.
        """
        if weights is None:
            return [self.document(tokens) for tokens in batch]
        return [self.document(tokens, own) for tokens, own in zip(batch, weights, strict=True)]

    def _hierarchical(self, tokens: Tokens) -> Tokens:
        kept, rest = self._split(tokens)
        if len(rest) < 2:
            return tokens
        if len(rest) > MAX_HIERARCHICAL:
            raise EncodingError(
                f"hierarchical pooling takes at most {MAX_HIERARCHICAL} tokens, not {len(rest)}"
            )
        labels = _ward(_distances(rest), max(len(rest) // (self.factor or 1), 1))
        return np.concatenate([kept, self._means(rest, labels)])

    def _kmeans(self, tokens: Tokens) -> Tokens:
        kept, rest = self._split(tokens)
        if len(rest) == 0:
            return tokens
        if self.factor is None:
            clusters = (self.clusters or 0) - len(kept)
        else:
            clusters = len(rest) // self.factor + 1
        labels = _spherical(rest, min(len(rest), clusters), self.iterations or 1)
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        return np.concatenate([kept, self._means(rest, first[inverse])])

    def _sequential(self, tokens: Tokens) -> Tokens:
        kept, rest = self._split(tokens)
        run = self.factor or self.tile or 1
        return np.concatenate([kept, self._means(rest, np.arange(len(rest)) // run)])

    def _rows(self, tokens: Tokens) -> Tokens:
        kept, rest = self._split(tokens)
        width, window = self.width or 1, self.window or 1
        rows = len(rest) // width
        rows = rows if self.height is None else min(rows, self.height)
        if rows == 0:
            return tokens
        bins = rows if self.max_rows is None else min(rows, self.max_rows)
        sums = rest[: rows * width].astype(np.float64).reshape(rows, width, -1).sum(axis=1)
        pooled = []
        for last in range(bins + window - 1):
            begin = max(last - window + 1, 0) * rows // bins
            end = (min(last, bins - 1) + 1) * rows // bins
            pooled.append(sums[begin:end].sum(axis=0) / ((end - begin) * width))
        return np.concatenate([kept, self._halves(np.array(pooled)), rest[rows * width :]])

    def _top(self, tokens: Tokens, weights: ArrayLike | None) -> Tokens:
        if weights is None:
            return tokens
        numbers = np.asarray(weights, dtype=np.float32)
        if numbers.shape != (len(tokens),):
            raise EncodingError(
                f"a multi-vector of {len(tokens)} tokens has weights of shape {numbers.shape}"
            )
        if np.isnan(numbers).any():
            raise EncodingError("weights of tokens are numbers, not NaN")
        # As the decimal number that it is written as: 0.7 of ten tokens are seven.
        count = ceil(len(tokens) * Fraction(str(self.share)))
        return tokens[np.sort(np.argsort(-numbers, kind="stable")[:count])]

    def _means(self, tokens: Tokens, labels: NDArray[Any]) -> Tokens:
        """Return the mean of the tokens with each label, in the order of the labels."""
        return self._halves(_averages(tokens, labels)) if len(tokens) else tokens

    def _halves(self, means: NDArray[np.float64]) -> Tokens:
        """Round as pgvector's avg and l2_normalize do: to float32, then to float16."""
        halves = means.astype(np.float32).astype(np.float16)
        if not self.normalize:
            return halves
        norms = norms_of(halves.astype(np.float32))[:, None]
        units = halves.astype(np.float64) / np.where(norms > 0, norms, 1)
        return units.astype(np.float32).astype(np.float16)

    def _split(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        return tokens[: self.protected], tokens[self.protected :]


def _check_option(name: str, value: Any) -> None:
    if name == "normalize":
        if not isinstance(value, bool):
            raise DeclarationError(f"option 'normalize' is true or false, not {value!r}")
        return
    if name == "share":
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0.001 <= value <= 1
        ):
            raise DeclarationError(f"option 'share' is a number from 0.001 to 1, not {value!r}")
        return
    least, most = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise DeclarationError(
            f"option {name!r} is an integer from {least} to {most}, not {value!r}"
        )
    if name == "window" and value % 2 == 0:
        raise DeclarationError(f"option 'window' is an odd number of rows, not {value!r}")


def _checked(tokens: ArrayLike) -> Tokens:
    """Return tokens as a halfvec column holds them."""
    found = np.asarray(tokens)
    if found.size == 0:
        return np.zeros((0, found.shape[1] if found.ndim == 2 else 0), dtype=np.float16)
    vectors = checked_vectors(found)
    if vectors.ndim != 2:
        raise EncodingError("a multi-vector has 2 dimensions (n, d), found 1")
    return to_halfvec(vectors)


def _averages(vectors: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of the vectors with each label in float64, which adds them exactly."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, inverse, vectors.astype(np.float64))
    return sums / counts[:, None]


def _rounded(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return coarse(vectors, norms_of(vectors))


def _distances(tokens: Tokens) -> NDArray[np.float64]:
    """Return the squared cosine distances of all pairs (n, n); infinity up to the diagonal."""
    x = _rounded(tokens.astype(np.float32))
    dots = (x @ x.T).astype(np.float64)
    norms = np.sqrt(dots.diagonal())
    scale = norms[:, None] * norms
    distances = 1 - np.divide(dots, scale, out=np.zeros_like(dots), where=scale > 0)
    squares: NDArray[np.float64] = distances * distances
    squares[np.tri(len(x), dtype=bool)] = np.inf
    return squares


def _ward(squares: NDArray[np.float64], clusters: int) -> NDArray[np.int64]:
    """Return for each token the first one of its cluster; as ``sqlvec._pool_ward``.

    :param squares: from :func:`_distances`; overwritten.
    """
    n = len(squares)
    labels = np.arange(n)
    sizes = np.ones(n)
    near = squares.argmin(axis=1)
    least = squares[labels, near]
    for _ in range(n - clusters):
        i = int(least.argmin())
        j = int(near[i])
        square = least[i]
        # Both as columns above, as rows behind: the distances to every other cluster.
        to_i = np.concatenate([squares[:i, i], squares[i, i:]])
        to_j = np.concatenate([squares[:j, j], squares[j, j:]])
        union = ((sizes[i] + sizes) * to_i + (sizes[j] + sizes) * to_j - sizes * square) / (
            sizes[i] + sizes[j] + sizes
        )
        union[[i, j]] = np.inf
        squares[:i, i] = union[:i]
        squares[i, i + 1 :] = union[i + 1 :]
        squares[j, :] = np.inf
        squares[:, j] = np.inf
        sizes[i] += sizes[j]
        labels[labels == j] = i
        least[j] = np.inf
        stale = (near == i) | (near == j)
        stale[i] = True
        stale[j] = False
        closer = (union[:i] < least[:i]) | ((union[:i] == least[:i]) & (i < near[:i]))
        closer &= ~stale[:i] & np.isfinite(least[:i])
        near[:i][closer] = i
        least[:i][closer] = union[:i][closer]
        rows = np.flatnonzero(stale)
        near[rows] = squares[rows].argmin(axis=1)
        least[rows] = squares[rows, near[rows]]
    return labels


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return integers of norm 2048, nearly; zero stays zero."""
    x = _rounded(vectors)
    squares = np.einsum("ij,ij->i", x, x).astype(np.float64)
    factor = np.divide(2048, np.sqrt(squares), out=np.ones(len(x)), where=squares > 0)
    return rounded(x * factor.astype(np.float32)[:, None], np.float32(1.5 * 2**23))


def _spherical(tokens: Tokens, clusters: int, iterations: int) -> NDArray[np.int64]:
    """Return for each token the number of its cluster; as ``sqlvec._pool_spherical``."""
    units = _directions(tokens.astype(np.float32))
    centres = units[np.arange(clusters) * len(units) // clusters]
    labels = np.full(len(units), -1)
    for _ in range(iterations):
        found = (units @ centres.T).argmax(axis=1)
        if (found == labels).all():
            break
        labels = found
        centres[np.unique(labels)] = _directions(_averages(units, labels).astype(np.float32))
    return labels
