"""Text encoding: prompts to conditionings of the U-Net, with a cache of encoded chunks."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.generation.calls import Answer, Conditioning, EncodeText
from limner.prompts.attention import Emphasis
from limner.prompts.chunks import Chunk, LearnedWords, TokenizedPrompt, tokenize_prompt
from limner.prompts.tokenizer import Tokenizer

Encode = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Token ids [B, T], those of learned words included, and clip_skip -> hidden states [B, T, C] and pooled
embeddings [B, P]."""

_Ids = tuple[int, ...]
_Encoded = tuple[Tensor, Tensor]  # of one chunk: hidden states [T, C], pooled [P]


@dataclass(frozen=True, eq=False)
class Tower:
    """One of a model's text encoders, with its tokenizer."""

    tokenizer: Tokenizer
    encode: Encode


class TextEncoder:
    """Encodes prompts with a model's text encoders, and caches the encoded chunks.

    Hidden states of several encoders are concatenated along the channels; the pooled embedding is that of the
    last encoder for a prompt's first chunk, as in AUTOMATIC1111.

    Args:
        words: Words of textual inversions, which have token ids of their own.
        pooled: Whether the U-Net takes the pooled embedding.
        max_bytes: Size of the cache; the least recently used chunks are dropped first.
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        words: LearnedWords | None = None,
        *,
        pooled: bool = False,
        max_bytes: int = 16 << 20,
    ) -> None:
        self._words = words
        self._towers, self._pooled, self._max_bytes = towers, pooled, max_bytes
        self._known: OrderedDict[tuple[int, _Ids, int, bool], _Encoded] = OrderedDict()

    def answer(self, calls: Sequence[EncodeText]) -> list[Answer]:
        """Answer calls with the same `clip_skip` and `exact`. Chunks that are not cached share a forward
        pass, or have one each if the calls are exact."""
        skip, exact = calls[0].clip_skip, calls[0].exact
        texts = [
            (prompt, "literal" if call.emphasis == "none" else call.syntax, call.cut, call.emphasis)
            for call in calls
            for prompt in call.prompts
        ]
        encoded = [
            [
                tokenize_prompt(prompt, tower.tokenizer, syntax, self._words, cut=cut)
                for prompt, syntax, cut, _ in texts
            ]
            for tower in self._towers
        ]
        read = [
            self._read(
                which, sorted({chunk.ids for prompt in prompts for chunk in prompt.chunks}), skip, exact
            )
            for which, prompts in enumerate(encoded)
        ]
        conditionings = iter(
            [
                self._conditioning(prompts, read, emphasis)
                for prompts, (*_, emphasis) in zip(zip(*encoded, strict=True), texts, strict=True)
            ]
        )
        warnings = iter([prompt.warnings for prompt in encoded[0]])
        return [
            Answer(
                tuple(next(conditionings) for _ in call.prompts),
                tuple(warning for _ in call.prompts for warning in next(warnings)),
            )
            for call in calls
        ]

    def _read(self, which: int, chunks: Sequence[_Ids], skip: int, exact: bool) -> dict[_Ids, _Encoded]:
        """The chunks, encoded by one encoder."""
        found = {ids: self._known.get((which, ids, skip, exact)) for ids in chunks}
        missing = [ids for ids, known in found.items() if known is None]
        together = [[ids] for ids in missing] if exact else [missing] * bool(missing)
        for group in together:
            hidden, pooled = self._towers[which].encode(torch.tensor(group), skip)
            for ids, states, summary in zip(group, hidden, pooled, strict=True):
                self._known[which, ids, skip, exact] = found[ids] = states.clone(), summary.clone()
        for ids in chunks:
            self._known.move_to_end((which, ids, skip, exact))
        while self._known and sum(s.nbytes + p.nbytes for s, p in self._known.values()) > self._max_bytes:
            self._known.popitem(last=False)
        return {ids: one for ids, one in found.items() if one is not None}

    def _conditioning(
        self, prompts: Sequence[TokenizedPrompt], read: Sequence[dict[_Ids, _Encoded]], emphasis: Emphasis
    ) -> Conditioning:
        """Join the hidden states of one prompt from all encoders.

        The encoders may split it into different numbers of chunks, as one may pad with `!`; missing chunks
        are zeros.
        """
        states = []
        for prompt, known in zip(prompts, read, strict=True):
            hidden = torch.stack([known[chunk.ids][0] for chunk in prompt.chunks])  # [chunks, T, C]
            states.append(_emphasised(hidden, prompt.chunks, emphasis).flatten(0, 1))  # [chunks*T, C]
        length = max(len(one) for one in states)
        joined = [torch.cat([one, one.new_zeros(length - len(one), one.shape[1])]) for one in states]
        pooled = read[-1][prompts[-1].chunks[0].ids][1][None] if self._pooled else None
        return Conditioning(torch.cat(joined, dim=1)[None], pooled)


def _emphasised(hidden: Tensor, chunks: Sequence[Chunk], emphasis: Emphasis) -> Tensor:
    """Multiply tokens [chunks, T, C] by their weights; "original" restores each chunk's mean, as
    AUTOMATIC1111 does by default.

    A mean near zero cannot be restored by scaling, so such a chunk is only multiplied. The means of CLIP's
    own text encoders are far from zero.
    """
    weights = torch.tensor([chunk.weights for chunk in chunks])[..., None]  # [chunks, T, 1]
    if emphasis == "ignore" or bool((weights == 1).all()):
        return hidden
    weighted = hidden * weights
    if emphasis == "no_norm":
        return weighted
    mean, spread = hidden.mean((1, 2), keepdim=True), hidden.std((1, 2), keepdim=True)
    scale = mean / weighted.mean((1, 2), keepdim=True)
    return weighted * torch.where(mean.abs() > 0.005 * spread, scale, 1.0)
