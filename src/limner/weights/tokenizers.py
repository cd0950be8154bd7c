"""The tokenizers of a checkpoint."""

from pathlib import Path

from limner.catalogue.layout import MODEL_INDEX
from limner.errors import InvalidCheckpoint, ModelNotFound
from limner.prompts.tokenizer import Tokenizer

from .parts import Checkpoint

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files that a tokenizer's folder may hold."""


def tokenizer_folder(name: str, path: Path) -> Path:
    """The folder of a tokenizer's files: this one, that of this file, or the one in this checkpoint.

    Args:
        name: "tokenizer" or "tokenizer_2".

    Raises:
        ModelNotFound: There is no tokenizer.
    """
    folder = path / name if (path / MODEL_INDEX).is_file() else path
    if path.name in TOKENIZER_FILES:
        folder = path.parent
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        return folder
    raise ModelNotFound(
        f"there is no {name} at {path}",
        hint="name a folder with tokenizer.json, or vocab.json and merges.txt",
    )


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files of the tokenizer in a folder."""
    return tuple(path for name in TOKENIZER_FILES if (path := folder / name).is_file())


def read_tokenizers(checkpoint: Checkpoint) -> dict[str, Tokenizer]:
    """Text encoder -> its tokenizer. Raises InvalidCheckpoint for one that does not fit its encoder."""
    tokenizers = {}
    for part, folder in checkpoint.tokenizers.items():
        text = checkpoint.text_configs[part]
        tokenizer = Tokenizer.from_folder(
            folder,
            default_max_length=text.max_position_embeddings,
            pad=checkpoint.pad_tokens.get(part),
        )
        if tokenizer.vocab_size > text.vocab_size or tokenizer.max_length > text.max_position_embeddings:
            raise InvalidCheckpoint(
                f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens and texts of "
                f"{tokenizer.max_length}; its text encoder takes {text.vocab_size} and "
                f"{text.max_position_embeddings}"
            )
        tokenizers[part] = tokenizer
    return tokenizers
