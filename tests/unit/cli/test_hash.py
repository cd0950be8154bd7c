"""`limner hash`."""

import torch

from limner.catalogue.hashes import file_hash, legacy_model_hash, lora_hash
from limner.cli.main import main
from limner.weights.tensors import write_tensors


def run(capsys, *arguments):
    try:
        main(["hash", *map(str, arguments)])
    except SystemExit as end:
        return end.code, *capsys.readouterr()
    raise AssertionError("it did not end")


def test_hashes_of_files(capsys, tmp_path):
    lora, other = tmp_path / "lora.safetensors", tmp_path / "other.pt"
    write_tensors(lora, {"a": torch.ones(3)}, {"ss_network_dim": "4"})
    other.write_bytes(b"x" * 2_000_000)
    code, out, _ = run(capsys, lora, other)
    assert not code
    lines = [line.split() for line in out.splitlines()]
    assert ["sha256", file_hash(lora)] in lines
    assert ["model", "hash", file_hash(other)[:10]] in lines
    assert ["until", "2023", legacy_model_hash(other)] in lines
    assert [line for line in lines if line[:2] == ["as", "a"]] == [["as", "a", "LoRA", lora_hash(lora)[:12]]]


def test_a_missing_file(capsys, tmp_path):
    code, _, err = run(capsys, tmp_path / "no.safetensors")
    assert code == 2
    assert "there is no file" in err
