"""Names of files in folders."""

from pathlib import Path

import pytest

from limner.catalogue.search import WEIGHTS, choose_fitting, find_named, list_files, not_found
from limner.errors import InvalidCheckpoint, ModelNotFound, PickleRefused, UnsupportedModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        *("ink.safetensors", "sd15/ink_v1.5.safetensors", "xl/ink_v1.5.SAFETENSORS", "xl/ink_v1.safetensors"),
        *("ink.preview.png", "ink.png", "ink.json", "ink.civitai.info", "ink.preview.safetensors", "old.pt"),
        *("canny/config.json", "canny/diffusion_pytorch_model.safetensors"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ink", ["ink"]),
        ("ink.safetensors", ["ink"]),
        ("ink_v1.5", ["sd15/ink_v1.5", "xl/ink_v1.5"]),
        ("ink_v1.5.safetensors", ["sd15/ink_v1.5"]),
        ("ink_v1", ["xl/ink_v1"]),
        ("xl/ink_v1.5", ["xl/ink_v1.5"]),
        ("xl\\ink_v1.5", ["xl/ink_v1.5"]),
        ("k_v1.5", []),
        ("../ink", []),
        ("old", []),
    ],
)
def test_a_name_means_the_files_that_end_with_it(folder, name, expected):
    assert [file.name for file in find_named(name, [folder], WEIGHTS)] == expected


def test_a_path_means_itself(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("xl/ink_v1.safetensors", str(folder / "xl/ink_v1.safetensors")):
        [file] = find_named(name, [], WEIGHTS)
        assert file.path == folder / "xl/ink_v1.safetensors"


def test_folders_of_networks_are_listed_whole(folder):
    names = [file.name for file in list_files([folder], WEIGHTS, networks=True)]
    assert "canny" in names
    assert "canny/diffusion_pytorch_model" not in names
    assert "canny/diffusion_pytorch_model" in [file.name for file in list_files([folder], WEIGHTS)]


def test_a_file_that_several_links_lead_to_is_listed_once(folder):
    (folder / "other").symlink_to(folder / "xl")
    (folder / "same.safetensors").symlink_to(folder / "ink.safetensors")
    names = [file.name for file in list_files([folder, folder / "xl"], WEIGHTS)]
    assert sorted(names) == [
        *("canny/diffusion_pytorch_model", "ink", "sd15/ink_v1.5", "xl/ink_v1", "xl/ink_v1.5")
    ]


def test_a_name_that_means_nothing(folder):
    error = not_found("LoRA", "Ink_v2", [folder], WEIGHTS)
    assert isinstance(error, ModelNotFound)
    assert "sd15/ink_v1.5" in error.message
    error = not_found("LoRA", "old", [folder], WEIGHTS)
    assert isinstance(error, PickleRefused)
    assert f'limner convert "{folder / "old.pt"}" "{folder / "old.safetensors"}" --to tensors' in error.hint
    assert "--allow-pickle" in error.hint
    assert "no folder" in not_found("LoRA", "ink", [], WEIGHTS).message


def test_the_file_that_fits_is_chosen(folder):
    files = find_named("ink_v1.5", [folder], WEIGHTS)

    def only(part: str):
        def read(path: Path) -> str:
            if part not in path.parts:
                raise UnsupportedModel(f"{path} is for another family")
            return part

        return read

    for part in ("sd15", "xl"):
        choice = choose_fitting("LoRA", "ink_v1.5", files, only(part))
        assert (choice.path.parent.name, choice.value, choice.warnings) == (part, part, ())
    with pytest.raises(UnsupportedModel, match=r"none of the 2 LoRA files named 'ink_v1.5' fits.*sd15.*xl"):
        choose_fitting("LoRA", "ink_v1.5", files, only("flux"))
    with pytest.raises(UnsupportedModel, match=r"^.*xl.* is for another family$"):
        choose_fitting("LoRA", "ink_v1.5", files[1:], only("flux"))


def test_an_ambiguous_name_is_a_warning_that_says_how_to_choose(folder):
    choice = choose_fitting("LoRA", "ink_v1.5", find_named("ink_v1.5", [folder], WEIGHTS), lambda path: 1)
    [warning] = choice.warnings
    assert choice.path == folder / "sd15/ink_v1.5.safetensors"
    assert f"{choice.path} is used" in warning
    assert "(sd15/ink_v1.5, xl/ink_v1.5)" in warning


def test_another_error_than_ours_is_not_caught(folder):
    def broken(path: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        choose_fitting("LoRA", "ink", find_named("ink", [folder], WEIGHTS), broken)
    assert issubclass(PickleRefused, InvalidCheckpoint)
