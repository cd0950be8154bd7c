"""Measuring what `Tuning` holds: a minute now, for every picture afterwards."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch

from limner.nn.layers import attention, attention_in_blocks
from limner.request import GenerationRequest

from .backends.native import DTYPES
from .limits import Limits, row_key
from .model import Model
from .tuning import NEVER

_TOKENS = (64, 256, 1024, 4096)  # of feature maps from 8x8 to 64x64
_HEADS, _DEPTH = 8, 64
_ROWS = (2, 4, 8, 16, 32, 64)
_NEAR = 0.95  # of the best rate counts as the best, since fewer rows mean less waiting


def blocks_from(precision: str) -> int:
    """The number of scores of one head from which attention in blocks is faster on this CPU."""
    fewest = NEVER
    for tokens in reversed(_TOKENS):
        q, k, v = torch.randn(3, 2, tokens, _HEADS * _DEPTH).to(DTYPES[precision]).unbind()
        with torch.inference_mode():
            fused, blocks = _seconds(
                partial(attention, q, k, v, _HEADS), partial(attention_in_blocks, q, k, v, _HEADS)
            )
        if blocks >= fused:
            break
        fewest = tokens * tokens
    return 0 if fewest == _TOKENS[0] ** 2 else fewest


def rows_that_pay(model: Model, request: GenerationRequest) -> Iterator[tuple[int, float]]:
    """Numbers of rows of the U-Net at a resolved request's size, and the rows per second of each.

    Ends when memory does, or when twice as many rows gain nothing any more.
    """
    _, _, height, width = model.latent_shape(request)
    checkpoint = model.checkpoint
    length = max(text.max_position_embeddings for text in checkpoint.text_configs.values())
    limits, best = Limits.of(model.backend.device), 0.0
    for rows in _ROWS:
        needed = model.backend.bytes + limits.most_for(model, model.latent_shape(request), rows)
        if needed > limits.memory:
            return
        x = torch.randn(rows, checkpoint.unet_config.in_channels, height, width)
        context = torch.randn(rows, length, checkpoint.unet_config.cross_attention_dim)
        more: dict[str, Any] = {}
        if checkpoint.sizes:
            more["pooled"] = torch.randn(rows, checkpoint.pooled_channels)
            more["sizes"] = torch.full((rows, checkpoint.sizes), 8.0 * height)
        if checkpoint.unet_config.time_cond_proj_dim is not None:
            more["guidance"] = torch.full((rows,), 7.5)
        timesteps = torch.full((rows,), 500.0)
        with torch.inference_mode():
            [seconds] = _seconds(partial(model.backend.denoise, x, timesteps, context, **more))
        yield rows, rows / seconds
        if rows / seconds < _NEAR * best:
            return
        best = max(best, rows / seconds)


def best_rows(model: Model, request: GenerationRequest, rates: dict[int, float]) -> tuple[str, int]:
    """The entry of `Tuning.rows`: the fewest rows that are about as good as the best."""
    _, _, height, width = model.latent_shape(request)
    best = max(rates.values())
    return row_key(model, height, width), min(rows for rows, rate in rates.items() if rate >= _NEAR * best)


def _seconds(*calls: Callable[[], object]) -> list[float]:
    """The median of each, in turns, for a second or so."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    began = time.perf_counter()
    while len(taken[0]) < 3 or (time.perf_counter() - began < 1.0 and len(taken[0]) < 50):
        for call, times in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [median(times) for times in taken]
