"""`limner convert`, as it is called."""

import pytest
import torch

from limner.cli.main import main
from limner.weights.tensors import open_tensors


def convert(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["convert", *map(str, arguments)])
    return ended.value.code


def test_the_target_is_printed_and_what_is_left_out_is_named(tmp_path, capsys):
    source, target = tmp_path / "a.pt", tmp_path / "a.safetensors"
    many = {f"many.{index}": index for index in range(7)}
    torch.save({"weight": torch.ones(3), "epoch": 4, **many}, source)
    assert convert(source, target, "--to", "tensors", "--allow-pickle", "--dtype", "bf16") == 0
    assert torch.equal(open_tensors(target)["weight"], torch.ones(3, dtype=torch.bfloat16))
    out, err = capsys.readouterr()
    assert out == f"{target}\n"
    assert err == "note: left out: epoch, many.… (7 names)\n"


def test_refusals_are_errors_with_hints(tmp_path, capsys, checkpoint_folder):
    pickled = tmp_path / "a.pt"
    torch.save({"weight": torch.ones(3)}, pickled)
    assert convert(pickled, tmp_path / "b", "--to", "tensors") == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert convert(checkpoint_folder, tmp_path / "b.safetensors") == 2  # a single file, by default
    assert "as a single file this model could not be read" in capsys.readouterr().err
    assert convert(tmp_path / "absent", tmp_path / "b") == 2
    assert "there is no model" in capsys.readouterr().err
