"""The names that hashes give to files, computed here step by step."""

import hashlib
import json

import pytest
import torch

from limner.catalogue import hashes
from limner.catalogue.hashes import file_hash, legacy_model_hash, lora_hash, network_hash
from limner.errors import InvalidCheckpoint
from limner.weights.tensors import write_tensors


def test_a_file_and_its_older_hash(tmp_path):
    path = tmp_path / "model.ckpt"
    data = bytes(range(251)) * 5000
    path.write_bytes(data)
    assert file_hash(path) == hashlib.sha256(data).hexdigest()
    assert legacy_model_hash(path) == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    path.write_bytes(b"short")
    assert file_hash(path) == hashlib.sha256(b"short").hexdigest()
    assert legacy_model_hash(path) == "e3b0c442"  # of nothing


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_networks_hash_is_of_its_weights(tmp_path, suffix):
    weights = tmp_path / f"diffusion_pytorch_model{suffix}"
    weights.write_bytes(b"weights")
    (tmp_path / "config.json").write_bytes(b"{}")
    alone = file_hash(weights)
    assert network_hash(weights) == alone
    assert network_hash(tmp_path) == hashlib.sha256(alone.encode()).hexdigest()


def test_a_loras_hash_is_of_its_tensors(tmp_path):
    path = tmp_path / "lora.safetensors"
    tensors = {"a.lora_up.weight": torch.arange(6.0), "a.alpha": torch.tensor(4.0)}
    write_tensors(path, tensors)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert json.loads(raw[8 : 8 + length])  # the header, which the hash is not of
    expected = hashlib.sha256(raw[8 + length :]).hexdigest()
    assert lora_hash(path) == expected
    assert file_hash(path) == hashlib.sha256(raw).hexdigest() != expected
    write_tensors(path, tensors, {"ss_output_name": "a name"})
    assert lora_hash(path) == expected
    write_tensors(path, tensors, {"sshs_model_hash": "0123456789abcdef"})
    assert lora_hash(path) == "0123456789abcdef"
    path.write_bytes(b"")
    with pytest.raises(InvalidCheckpoint):
        lora_hash(path)


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    first = file_hash(path)
    with monkeypatch.context() as patch:
        patch.setattr(hashes.hashlib, "file_digest", None)
        assert file_hash(path) == first
    path.write_bytes(b"another")
    assert file_hash(path) == hashlib.sha256(b"another").hexdigest()
