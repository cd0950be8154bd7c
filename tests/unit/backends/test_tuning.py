"""What was measured on a machine is found again there, and only there."""

import json
from dataclasses import replace

import pytest

from limner.backends import tuning
from limner.backends.tuning import NEVER, Tuning, tuning_file
from limner.engine import measuring
from limner.engine.loaded import load
from limner.engine.memory import Limits, row_key
from limner.errors import InvalidRequest


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))


def test_stored_figures_are_found_again(tmp_path):
    before = replace(Tuning.stored(tmp_path), blocks_from={"bf16": 4096}, rows={"a 8x8 torch bf16": 4})
    assert before.store(tmp_path) == tuning_file(tmp_path)
    assert Tuning.stored(tmp_path) == before


def test_figures_of_another_machine_do_not_count(tmp_path):
    Tuning("a machine elsewhere", rows={"a": 4}).store(tmp_path)
    assert Tuning.stored(tmp_path).rows == {}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"machine": "x", "rows": {"a": "many"}}', '{"machine": "x", "more": 1}']
)
def test_a_broken_file_is_named(text, tmp_path):
    tuning_file(tmp_path).write_text(text)
    with pytest.raises(InvalidRequest, match=r"tuning.json is broken"):
        Tuning.stored(tmp_path)


def test_attention_goes_by_the_table():
    known = Tuning("here", blocks_from={"bf16": 4096, "fp32": NEVER})
    assert known.first_in_blocks("bf16") == 4096
    assert known.first_in_blocks("fp32") == NEVER


def test_without_a_table_it_goes_by_the_processor(monkeypatch):
    for processor, in_blocks in (("AMD EPYC AVX512", True), ("Intel Xeon AVX512", False)):
        monkeypatch.setattr(tuning, "_processor", lambda processor=processor: processor)
        assert Tuning("here").first_in_blocks("bf16") == (0 if in_blocks else NEVER)
        assert Tuning("here").first_in_blocks("fp32") == NEVER


def test_blocks_win_from_where_they_are_faster(monkeypatch):
    fused = iter([9.0, 9.0, 1.0])  # at 4096, 1024 and 256 tokens

    monkeypatch.setattr(measuring, "_seconds", lambda *_: [next(fused), 2.0])
    assert measuring.blocks_from("fp32") == 1024 * 1024


def test_the_fewest_rows_that_are_about_as_good_are_kept(checkpoint_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "_ROWS", (2, 4, 8))
    model = load(checkpoint_folder, precision="fp32")
    assert [rows for rows, rate in measuring.rows_that_pay(model, 64, 96) if rate > 0][:1] == [2]

    key, most = measuring.best_rows(model, 64, 96, {2: 10.0, 4: 19.2, 8: 20.0})
    assert (key, most) == (row_key(model, 48, 32), 4)
    Tuning(tuning.this_machine(), rows={key: most}).store(tmp_path)
    limits = Limits.of(model.backend.device, tmp_path)
    assert limits.rows_of(model, 48, 32) == 4
    assert limits.rows_of(model, 32, 32) != 4


def test_the_command_measures_and_stores(checkpoint_folder, monkeypatch, capsys, tmp_path):
    from limner.cli.main import main

    monkeypatch.setattr(measuring, "_TOKENS", (64,))
    monkeypatch.setattr(measuring, "_ROWS", (2, 4))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "tune",
                "--model",
                str(checkpoint_folder),
                "--precision",
                "fp32",
                "--width",
                "64",
                "--height",
                "64",
            ]
        )
    assert not ended.value.code
    assert capsys.readouterr().out.splitlines()[-1] == str(tuning_file(tmp_path))
    kept = json.loads(tuning_file(tmp_path).read_text())
    assert set(kept["blocks_from"]) == {"fp32", "bf16"}
    [(key, rows)] = kept["rows"].items()
    assert key.endswith("torch fp32")
    assert rows in (2, 4)
