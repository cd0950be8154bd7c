"""The hashes by which people and programs name model files, as AUTOMATIC1111's webui computes them.

An infotext has the first 10 digits for a checkpoint ("Model hash") and the first 12 for LoRAs and embeddings.
Gigabytes take seconds to read, so that hashes are kept in a cache, by the file's stamp.
"""

import hashlib
import re
from pathlib import Path

from limner.errors import OutputError
from limner.files import FileStamp, whole_file
from limner.settings import default_cache_dir

from .headers import read_header


def file_hash(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a file, in hex.

    Args:
        cache: Folder for hashes; None is the user's cache.
    """
    return _cached(path, 0, cache)


def legacy_model_hash(path: Path) -> str:
    """The 8 digits that named a checkpoint until 2023: of the 64 KiB after its first MiB alone."""
    with path.open("rb") as file:
        file.seek(1 << 20)
        return hashlib.sha256(file.read(1 << 16)).hexdigest()[:8]


def lora_hash(path: Path, cache: Path | None = None) -> str:
    """The hash of a LoRA: what the file's metadata says, else SHA-256 of its tensors' bytes, in hex.

    It does not change with the metadata. Arguments as for `file_hash`.

    Raises:
        InvalidCheckpoint: as `read_header`.
    """
    header = read_header(path)
    return header.metadata.get("sshs_model_hash") or _cached(path, header.data_start, cache)


def network_hash(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a network's file, or of those of all weights in its folder, in hex."""
    if path.is_file():
        return file_hash(path, cache)
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    hashes = [file_hash(file, cache) for file in weights]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _cached(path: Path, start: int, cache: Path | None) -> str:
    """SHA-256 of a file from byte `start` on, kept in the cache by the file's stamp."""
    stamp = FileStamp.of(path.resolve())
    identity = f"{stamp.path}|{stamp.size}|{stamp.mtime_ns}|{stamp.inode}"
    identity += f"|{start}" if start else ""
    cached = (cache or default_cache_dir()) / "sha256" / hashlib.sha256(identity.encode()).hexdigest()
    if cached.is_file() and re.fullmatch(r"[0-9a-f]{64}", known := cached.read_text(encoding="utf-8")):
        return known
    with path.open("rb") as file:
        file.seek(start)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(cached) as temporary:
            temporary.write_text(digest, encoding="utf-8")
    except (OSError, OutputError):
        pass  # a cache that cannot be written costs time, not the result
    return digest
