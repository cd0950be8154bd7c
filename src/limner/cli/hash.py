"""`limner hash`: the names that other programs have for a model file."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def hash_files(
    files: Annotated[list[Path], typer.Argument(help="Checkpoints, LoRAs, embeddings, autoencoders.")],
) -> None:
    """Print the hashes of files, as AUTOMATIC1111 computes them.

    The first ten digits of SHA-256 are a picture's "Model hash"; LoRA files go by the first twelve of a hash
    over their tensors alone.
    """
    from limner.errors import InvalidCheckpoint, LimnerError
    from limner.weights.hashes import file_hash, legacy_model_hash, lora_hash

    for file in files:
        if not file.is_file():
            raise InvalidCheckpoint(f"there is no file {file}")
        digest = file_hash(file)
        rows = {"model hash": digest[:10], "sha256": digest, "until 2023": legacy_model_hash(file)}
        with suppress(LimnerError):  # as other files are no LoRA
            rows["as a LoRA"] = lora_hash(file)[:12]
        typer.echo(f"{file}\n" + "".join(f"  {name:<12}{value}\n" for name, value in rows.items()), nl=False)
