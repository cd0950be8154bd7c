"""`limner hash`: the hashes by which other programs identify a model file."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from limner.settings import Settings


def hash_files(
    files: Annotated[list[Path], typer.Argument(help="Checkpoints, LoRAs, embeddings, autoencoders.")],
) -> None:
    """Print the hashes of files, as AUTOMATIC1111 computes them.

    The first ten digits of SHA-256 are the "Model hash" of images. LoRAs are identified by the first twelve
    digits of a hash of their tensors.
    """
    from limner.catalogue.hashes import file_hash, legacy_model_hash, lora_hash
    from limner.errors import InvalidCheckpoint, LimnerError

    cache = Settings.read().cache_dir
    for file in files:
        if not file.is_file():
            raise InvalidCheckpoint(f"there is no file {file}")
        digest = file_hash(file, cache)
        rows = {"model hash": digest[:10], "sha256": digest, "until 2023": legacy_model_hash(file)}
        with suppress(LimnerError):  # as other files are no LoRA
            rows["as a LoRA"] = lora_hash(file, cache)[:12]
        typer.echo(f"{file}\n" + "".join(f"  {name:<12}{value}\n" for name, value in rows.items()), nl=False)
