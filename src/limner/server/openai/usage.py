"""Number of tokens of prompts, by the tokenizer of their model. No torch."""

from collections.abc import Sequence
from pathlib import Path

from limner.prompts.attention import PromptSyntax, parse_attention
from limner.prompts.tokenizer import Tokenizer
from limner.service.vocabulary import tokenizer_of


def count_tokens(checkpoint: Path, prompts: Sequence[str], syntax: PromptSyntax = "a1111") -> int:
    """Number of tokens of prompts, without start, end and padding; weights and brackets are no tokens.

    A checkpoint without a tokenizer of its own, such as a single file, is counted by the one that ships.
    """
    tokenizer, _ = tokenizer_of(checkpoint)
    return sum(_count(tokenizer, prompt, syntax) for prompt in prompts)


def _count(tokenizer: Tokenizer, prompt: str, syntax: PromptSyntax) -> int:
    texts = [text for text, _ in parse_attention(prompt)] if syntax == "a1111" else [prompt]
    return sum(len(tokenizer.encode(text)) for text in texts if text != "BREAK" or syntax != "a1111")
