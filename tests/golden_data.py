"""The golden data of tests/golden as one plain folder: compressed files unpacked, derived files made."""

import gzip
import json
import lzma
import shutil
from pathlib import Path

import torch

from limner.weights.tensors import write_tensors

PACKED = Path(__file__).parent / "golden"
_VOCABULARY = 49_408


def unpack(folder: Path) -> Path:
    """Fill a new folder with the golden data and return it."""
    for path in PACKED.rglob("*"):
        if not path.is_file():
            continue
        target = folder / path.relative_to(PACKED)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".xz":
            target.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        else:
            shutil.copyfile(path, target)
    _derive_vocabulary(folder / "tokenizer")
    for seed, header in enumerate(sorted((folder / "lora" / "real").glob("*.header.json"))):
        _fill(header, seed)
    return folder


def _derive_vocabulary(folder: Path) -> None:
    """Write CLIP's merges.txt and vocab.json as the hub has them, from openai's list of merges.

    Ids in order: 256 bytes, the same at the end of a word, the merges, start and end of text.
    """
    with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : _VOCABULARY - 512 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
    ]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _fill(header: Path, seed: int) -> None:
    """Write the safetensors file that a header describes, with random numbers."""
    facts = json.loads(header.read_text())
    generator = torch.Generator().manual_seed(seed)
    dtypes = {"F32": torch.float32, "F16": torch.float16}
    tensors = {
        name: torch.randn(entry["shape"], generator=generator).to(dtypes[entry["dtype"]])
        for name, entry in facts["tensors"].items()
    }
    path = header.with_name(header.name.removesuffix(".header.json"))
    write_tensors(path, tensors, metadata=facts["metadata"])
