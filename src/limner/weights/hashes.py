"""The hashes by which people and programs name model files, as AUTOMATIC1111's webui computes them.

An infotext has the first 10 digits for a checkpoint ("Model hash") and the first 12 for LoRAs and embeddings.
Gigabytes take seconds to read, so no loading waits for a hash, and each is kept in the user's cache.
"""

import hashlib
import re
from pathlib import Path

from limner.errors import OutputError

from .files import user_cache, whole_file
from .tensors import read_header


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex; of checkpoints, autoencoders and embeddings."""
    return _cached(path, 0)


def legacy_model_hash(path: Path) -> str:
    """The 8 digits that stood for a checkpoint until 2023: of the 64 KiB behind its first MiB alone."""
    with path.open("rb") as file:
        file.seek(1 << 20)
        return hashlib.sha256(file.read(1 << 16)).hexdigest()[:8]


def lora_hash(path: Path) -> str:
    """What a safetensors file of a LoRA says that its hash is, or SHA-256 of its tensors' bytes, in hex.

    So the hash outlives a change of metadata. Raises InvalidCheckpoint as `read_header`.
    """
    header = read_header(path)
    return header.metadata.get("sshs_model_hash") or _cached(path, header.data_start)


def network_hash(path: Path) -> str:
    """SHA-256 of a network's file, or of those of all weights in its folder, in hex."""
    if path.is_file():
        return file_hash(path)
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    hashes = [file_hash(file) for file in weights]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _cached(path: Path, start: int) -> str:
    """SHA-256 of a file from byte `start` on. The cache knows it by path, size and time of change."""
    status = path.stat()
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
    identity += f"|{start}" if start else ""
    cached = user_cache() / "sha256" / hashlib.sha256(identity.encode()).hexdigest()
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
