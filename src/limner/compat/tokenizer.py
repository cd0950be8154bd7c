"""CLIP's tokenizer with the interface of transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

import limner.nn.clip
import limner.nn.unet
import limner.nn.vae
import limner.prompts.tokenizer
from limner.errors import InvalidRequest, ModelNotFound
from limner.weights.tokenizers import TOKENIZER_FILES

from .files import ComponentLocation, reject_unsupported
from .values import Output


@dataclass
class BatchEncoding(Output):
    """Token ids and attention mask (1 for tokens, 0 for padding), as tensors [B, T] or lists."""

    input_ids: Any
    attention_mask: Any

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on a device."""
        return type(self)(self.input_ids.to(device), self.attention_mask.to(device))


class CLIPTokenizer:
    """CLIP's tokenizer.

    Attributes:
        model_max_length: Largest number of tokens that the text encoder takes, start and end included.
    """

    def __init__(self, tokenizer: limner.prompts.tokenizer.Tokenizer) -> None:
        self.own = tokenizer
        self.model_max_length = tokenizer.max_length
        self.bos_token_id, self.eos_token_id = tokenizer.bos, tokenizer.eos
        self.pad_token_id, self.vocab_size = tokenizer.pad, tokenizer.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        **where: Any,
    ) -> Self:
        """Load the tokenizer of a folder or a hub id. Raises as `Tokenizer.from_folder`.

        Args:
            where: Location arguments of `Network.from_pretrained`.
        """
        location, strange = ComponentLocation.from_arguments(pretrained_model_name_or_path, where)
        reject_unsupported(strange, ("use_fast",))
        found = []
        for name in TOKENIZER_FILES:
            try:
                found.append(location.find(name))
            except ModelNotFound as error:
                missing = error
        if not found:
            raise missing
        return cls(limner.prompts.tokenizer.Tokenizer.from_folder(found[0].parent))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the tokenizer's files into a folder, which is created if necessary."""
        self.own.save(save_directory)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool = True,
    ) -> BatchEncoding:
        """Tokenize texts.

        Args:
            padding: Length to pad to: "max_length"; "longest" or True; False for no padding.
            truncation: Whether to truncate to `max_length`.
            max_length: Length for padding and truncation; None is `model_max_length`.
            return_tensors: "pt" for tensors, or None for lists.

        Raises:
            InvalidRequest: `padding`, `truncation` or `return_tensors` has an unsupported value; or texts of
                different lengths are to become a tensor.
        """
        if padding not in (False, True, "max_length", "longest", "do_not_pad"):
            raise InvalidRequest(f"padding is {padding!r}; expected 'max_length', 'longest' or False")
        if truncation not in (False, True, "longest_first", "do_not_truncate"):
            raise InvalidRequest(f"truncation is {truncation!r}; expected True or False")
        if return_tensors not in (None, "pt"):
            raise InvalidRequest(f"return_tensors is {return_tensors!r}; expected 'pt' or None")
        longest = max_length or self.model_max_length
        frame = 2 * add_special_tokens
        rows = [self.own.encode(one) for one in ([text] if isinstance(text, str) else text)]
        if truncation in (True, "longest_first"):
            rows = [row[: longest - frame] for row in rows]
        if add_special_tokens:
            rows = [[self.bos_token_id, *row, self.eos_token_id] for row in rows]
        length = longest if padding == "max_length" else max(map(len, rows), default=0)
        room = [length - len(row) if padding not in (False, "do_not_pad") else 0 for row in rows]
        masks = [[1] * len(row) + [0] * more for row, more in zip(rows, room, strict=True)]
        rows = [row + [self.pad_token_id] * more for row, more in zip(rows, room, strict=True)]
        if return_tensors is None:
            single = isinstance(text, str)
            return BatchEncoding(rows[0] if single else rows, masks[0] if single else masks)
        if len({len(row) for row in rows}) > 1:
            raise InvalidRequest(
                "texts of different lengths cannot form a tensor", hint="padding='max_length'"
            )
        return BatchEncoding(torch.tensor(rows), torch.tensor(masks))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        ids: list[int] = self(text, add_special_tokens=add_special_tokens).input_ids
        return ids

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, as spelled in the vocabulary."""
        return self.own.tokens(self.own.encode(text))

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids.

        Args:
            skip_special_tokens: Whether to leave out start, end and padding.
        """
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else [*token_ids]
        special = {self.bos_token_id, self.eos_token_id, self.pad_token_id}
        return self.own.decode([one for one in ids if not (skip_special_tokens and one in special)])

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """Return the text of each row of token ids."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Return the id of a token, or of each of several; unknown tokens have the id of the end token."""
        ids = [self.own.index(token) for token in ([tokens] if isinstance(tokens, str) else tokens)]
        found = [self.eos_token_id if index is None else index for index in ids]
        return found[0] if isinstance(tokens, str) else found

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        """Return the token of an id, or of each of several."""
        return self.own.tokens([ids])[0] if isinstance(ids, int) else self.own.tokens(ids)
