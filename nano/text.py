"""Prompt words to text embeddings by a fixed table; it takes the place of the umt5 text encoder.

Layout of the [1, 8, 4096] embedding: token 0 is the colour word, token 1 the shape word, tokens 2 to 7 are zero, as the
padding behind a prompt is in the Wan pipelines. A word's row is standard normal noise from
`numpy.random.Generator(PCG64(crc32(word)))`, so the table needs no file and is the same on every machine.
The empty prompt is all zeros: it is the prompt used for dropout in training and for the unconditional stream.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np
import torch

from .shapes import COLOURS, SHAPES

TEXT_TOKENS = 8
TEXT_DIM = 4096


@functools.cache
def _row(word: str) -> np.ndarray:
    """Embedding of one word, float32 [TEXT_DIM]."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(word.encode())))
    return rng.standard_normal(TEXT_DIM, dtype=np.float32)


def parse(prompt: str) -> tuple[str, str] | None:
    """Split a prompt into (colour, shape); None for the empty prompt. Raises ValueError on anything else."""
    words = prompt.lower().split()
    if not words:
        return None
    colours, shapes = ", ".join(COLOURS), ", ".join(SHAPES)
    for word in words:
        if word not in COLOURS and word not in SHAPES:
            raise ValueError(f"unknown word {word!r} in prompt {prompt!r}: nano knows the colours {colours} "
                             f"and the shapes {shapes}")
    if len(words) != 2 or words[0] not in COLOURS or words[1] not in SHAPES:
        raise ValueError(f"prompt {prompt!r} must be one colour ({colours}) followed by one shape ({shapes}), "
                         "for example 'red circle', or empty")
    return words[0], words[1]


def encode(prompt: str) -> torch.Tensor:
    """Embedding of a prompt such as 'red circle' ('' for the unconditional one), float32 [1, 8, 4096]."""
    out = torch.zeros(1, TEXT_TOKENS, TEXT_DIM)
    for token, word in enumerate(parse(prompt) or ()):
        out[0, token] = torch.from_numpy(_row(word))
    return out
