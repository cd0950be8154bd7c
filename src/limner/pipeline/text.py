"""Prompts to what the U-Net sees of them, kept for as long as they are asked for again."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limner.prompts.chunks import Chunk, encode_prompt
from limner.prompts.tokenizer import Tokenizer

from .calls import Answer, Conditioning, EncodeText

Encode = Callable[[Tensor, int], Tensor]
"""Token ids [B, T] and clip_skip -> hidden states [B, T, C]."""

_Key = tuple[tuple[int, ...], int, bool]


class TextEncoder:
    """Embeds prompts with one text encoder, remembering the chunks that it has read.

    Args:
        encode: runs the network.
        max_bytes: of what is remembered; the chunks asked for longest ago are forgotten first.
    """

    def __init__(self, tokenizer: Tokenizer, encode: Encode, max_bytes: int = 64 << 20) -> None:
        self._tokenizer, self._encode, self._max_bytes = tokenizer, encode, max_bytes
        self._known: OrderedDict[_Key, Tensor] = OrderedDict()  # hidden states [T, C]

    def answer(self, calls: Sequence[EncodeText]) -> list[Answer]:
        """Answer calls of one `clip_skip` and one `exact`. Chunks that are not known share a forward pass, or
        have one each where the calls are exact."""
        skip, exact = calls[0].clip_skip, calls[0].exact
        encoded = [
            [encode_prompt(prompt, self._tokenizer, call.syntax) for prompt in call.prompts] for call in calls
        ]
        chunks = {chunk.ids for prompts in encoded for prompt in prompts for chunk in prompt.chunks}
        hidden = self._hidden(sorted(chunks), skip, exact)
        return [
            Answer(
                tuple(_conditioning(prompt.chunks, hidden) for prompt in prompts),
                tuple(warning for prompt in prompts for warning in prompt.warnings),
            )
            for prompts in encoded
        ]

    def _hidden(
        self, chunks: Sequence[tuple[int, ...]], skip: int, exact: bool
    ) -> dict[tuple[int, ...], Tensor]:
        found = {ids: self._known.get((ids, skip, exact)) for ids in chunks}
        missing = [ids for ids, known in found.items() if known is None]
        together = [[ids] for ids in missing] if exact else [missing] * bool(missing)
        for group in together:
            hidden = self._encode(torch.tensor(group), skip)
            for ids, one in zip(group, hidden, strict=True):
                self._known[ids, skip, exact] = found[ids] = one.clone()
        for ids in chunks:
            self._known.move_to_end((ids, skip, exact))
        while self._known and sum(one.nbytes for one in self._known.values()) > self._max_bytes:
            self._known.popitem(last=False)
        return {ids: one for ids, one in found.items() if one is not None}


def _conditioning(chunks: Sequence[Chunk], hidden: dict[tuple[int, ...], Tensor]) -> Conditioning:
    states = torch.stack([hidden[chunk.ids] for chunk in chunks])  # [chunks, T, C]
    return Conditioning(_emphasised(states, chunks).flatten(0, 1)[None])  # [1, chunks*T, C]


def _emphasised(hidden: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """Weigh tokens [chunks, T, C], keeping each chunk's mean, as AUTOMATIC1111's "Original" emphasis does.

    A mean that is next to nothing cannot be kept by scaling, so such a chunk is only weighed. CLIP's own
    text encoders are far from that.
    """
    weights = torch.tensor([chunk.weights for chunk in chunks])[..., None]  # [chunks, T, 1]
    if bool((weights == 1).all()):
        return hidden
    weighed = hidden * weights
    mean, spread = hidden.mean((1, 2), keepdim=True), hidden.std((1, 2), keepdim=True)
    scale = mean / weighed.mean((1, 2), keepdim=True)
    return weighed * torch.where(mean.abs() > 0.005 * spread, scale, 1.0)
