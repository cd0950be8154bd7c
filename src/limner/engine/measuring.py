"""Measurements for `Tuning`: the fastest attention, and the number of rows per forward pass."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from limner.backends.networks import DTYPES
from limner.backends.tuning import NEVER
from limner.model.model import Model
from limner.nn.layers import attention, attention_in_blocks
from limner.nn.unet import Conditions
from limner.request.estimate import unet_bytes

from .memory import Limits, element_size, row_key

_TOKENS = (64, 256, 1024, 4096)  # of feature maps from 8x8 to 64x64
_HEADS, _DEPTH = 8, 64
_ROWS = (2, 4, 8, 16, 32, 64)
_NEAR = 0.95  # share of the best rate that is good enough: smaller batches wait less


def blocks_from(precision: str) -> int:
    """Number of attention scores per head from which attention in blocks is faster on this CPU."""
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


def rows_that_pay(model: Model, width: int, height: int) -> Iterator[tuple[int, float]]:
    """Yield batch sizes of the U-Net at this size in pixels, each with its rows per second.

    Stops where memory does not suffice, or where doubling the batch no longer raises the rate.
    """
    _, _, h, w = model.facts.latent_shape(width, height)
    checkpoint = model.checkpoint
    length = max(text.max_position_embeddings for text in checkpoint.text_configs.values())
    limits, best = Limits.of(model.backend.device, model.cache_dir), 0.0
    for rows in _ROWS:
        needed = model.backend.bytes + rows * unet_bytes(model.facts, h, w, element_size(model))
        if needed > limits.memory:
            return
        x = torch.randn(rows, checkpoint.unet_config.in_channels, h, w)
        context = torch.randn(rows, length, checkpoint.unet_config.cross_attention_dim)
        guided = checkpoint.unet_config.time_cond_proj_dim is not None
        conditions = Conditions(
            torch.randn(rows, checkpoint.pooled_channels) if checkpoint.sizes else None,
            torch.full((rows, checkpoint.sizes), float(height)) if checkpoint.sizes else None,
            torch.full((rows,), 7.5) if guided else None,
        )
        timesteps = torch.full((rows,), 500.0)
        with torch.inference_mode():
            [seconds] = _seconds(partial(model.backend.denoise, x, timesteps, context, conditions))
        yield rows, rows / seconds
        if rows / seconds < _NEAR * best:
            return
        best = max(best, rows / seconds)


def best_rows(model: Model, width: int, height: int, rates: dict[int, float]) -> tuple[str, int]:
    """The entry of `Tuning.rows`: the smallest batch size with nearly the best rate."""
    _, _, h, w = model.facts.latent_shape(width, height)
    best = max(rates.values())
    return row_key(model, h, w), min(rows for rows, rate in rates.items() if rate >= _NEAR * best)


def _seconds(*calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call. The calls take turns for about a second."""
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
