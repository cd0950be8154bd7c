"""Prompts to what the U-Net sees of them, kept for as long as they are asked for again."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.prompts.chunks import Chunk, Emphasis, EncodedPrompt, LearnedWords, encode_prompt
from limner.prompts.tokenizer import Tokenizer

from .calls import Answer, Conditioning, EncodeText

Encode = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Token ids [B, T], those of learned words included, and clip_skip -> hidden states [B, T, C] and pooled
embeddings [B, P]."""

_Ids = tuple[int, ...]
_Read = tuple[Tensor, Tensor]  # of one chunk: hidden states [T, C], pooled [P]


@dataclass(frozen=True, eq=False)
class Tower:
    """One of a model's text encoders, with its tokenizer."""

    tokenizer: Tokenizer
    encode: Encode


class TextEncoder:
    """Embeds prompts with a model's text encoders, remembering the chunks that they have read.

    Hidden states of several encoders lie side by side; the pooled embedding is that of the last encoder and
    of a prompt's first chunk, as AUTOMATIC1111 has it.

    Args:
        words: that have ids of their own.
        pooled: whether the U-Net wants the pooled embedding.
        max_bytes: of what is remembered; the chunks asked for longest ago are forgotten first.
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
        self._known: OrderedDict[tuple[int, _Ids, int, bool], _Read] = OrderedDict()

    def answer(self, calls: Sequence[EncodeText]) -> list[Answer]:
        """Answer calls of one `clip_skip` and one `exact`. Chunks that are not known share a forward pass, or
        have one each where the calls are exact."""
        skip, exact = calls[0].clip_skip, calls[0].exact
        texts = [
            (prompt, "literal" if call.emphasis == "none" else call.syntax, call.cut, call.emphasis)
            for call in calls
            for prompt in call.prompts
        ]
        encoded = [
            [
                encode_prompt(prompt, tower.tokenizer, syntax, self._words, cut=cut)
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

    def _read(self, which: int, chunks: Sequence[_Ids], skip: int, exact: bool) -> dict[_Ids, _Read]:
        """What one encoder makes of chunks."""
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
        self, prompts: Sequence[EncodedPrompt], read: Sequence[dict[_Ids, _Read]], emphasis: Emphasis
    ) -> Conditioning:
        """Join what the encoders made of one prompt.

        They may disagree about where it is cut, as one may pad with `!`; so the first decides how many chunks
        there are at least, and what one lacks of them is zero.
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
    """Weigh tokens [chunks, T, C]; "original" keeps each chunk's mean, as AUTOMATIC1111's default does.

    A mean that is next to nothing cannot be kept by scaling, so such a chunk is only weighed. CLIP's own
    text encoders are far from that.
    """
    weights = torch.tensor([chunk.weights for chunk in chunks])[..., None]  # [chunks, T, 1]
    if emphasis == "ignore" or bool((weights == 1).all()):
        return hidden
    weighed = hidden * weights
    if emphasis == "no_norm":
        return weighed
    mean, spread = hidden.mean((1, 2), keepdim=True), hidden.std((1, 2), keepdim=True)
    scale = mean / weighed.mean((1, 2), keepdim=True)
    return weighed * torch.where(mean.abs() > 0.005 * spread, scale, 1.0)
