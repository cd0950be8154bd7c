"""The tokenizer against ids made by transformers and against transformers itself."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import InvalidCheckpoint, InvalidRequest, OutputError, PromptError
from limner.prompts.tokenizer import Tokenizer

CAPTIONS = [
    f"{article} {colour} {thing} {place} a {other}{end}"
    for article in ("a", "the")
    for colour in ("red", "green", "blue", "yellow")
    for thing in ("house", "boat", "cat", "mushroom")
    for place in ("left of", "above", "on")
    for other, end in (("tree", ", at night."), ("balloon", " in the snow"))
]

AWKWARD = [
    "",
    "   ",
    "Hello,  World!!",
    "it's 2024: don't",
    "日本語 и кириллица",
    "🎈🏠 naïve cafe\u0301",
    "a\u0000b\u0085c\u200dd",
    "ΟΔΟΣ ﬁ ½",
    "<|startoftext|> x <|ENDOFTEXT|>",
    "!" * 40 + "(((",
]


def folder_of(tmp_path: Path, reference: Path, config: str | None) -> Path:
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(reference / "tokenizer" / name, tmp_path / name)
    if config is not None:
        for file in (reference / "configs" / config).glob("*.json"):
            shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


@pytest.fixture(scope="module")
def golden(reference):
    with open(reference / "tokenizer" / "golden.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ("sd15/tokenizer", "transformers"),
        ("sdxl-base/tokenizer", "transformers"),
        ("sd21-768-v/tokenizer", "transformers_sd21"),
        ("sdxl-base/tokenizer_2", "transformers_sdxl_tokenizer_2"),
        (None, "transformers_bare"),
    ],
)
def test_golden_ids(tmp_path, reference, golden, config, field):
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path, reference, config))
    wrong = [r["text"] for r in golden if tokenizer.encode(r["text"]) != r.get(field, r["transformers"])]
    assert not wrong
    assert len(golden) > 200


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ("sd15/tokenizer", "transformers_77"),
        ("sdxl-base/tokenizer_2", "transformers_sdxl_tokenizer_2_77"),
    ],
)
def test_golden_padded_ids(tmp_path, reference, golden, config, field):
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path, reference, config))
    for record in golden:
        ids, rest = tokenizer.encode_padded(record["text"])
        assert list(ids) == record[field]
        assert bool(rest) == (len(tokenizer.encode(record["text"])) > 75)


def test_special_ids_come_from_the_files(tmp_path, reference):
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path, reference, "sd21-768-v/tokenizer"))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (49406, 49407, 0)
    assert (tokenizer.max_length, tokenizer.vocab_size) == (77, 49408)


@pytest.mark.parametrize("config", ["sd15/tokenizer", "sd21-768-v/tokenizer", None])
def test_agrees_with_transformers_on_awkward_text(tmp_path, reference, config):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, reference, config)
    ours, theirs = Tokenizer.from_folder(folder), transformers.CLIPTokenizer.from_pretrained(folder)
    for text in AWKWARD:
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, text


def test_tokenizer_json_alone(tmp_path, reference, golden):
    """What transformers 5 saves: tokenizer.json and tokenizer_config.json, no vocab.json."""
    transformers = pytest.importorskip("transformers")
    source = folder_of(tmp_path, reference, "sd21-768-v/tokenizer")
    transformers.CLIPTokenizer.from_pretrained(source).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.json").exists()
    ours = Tokenizer.from_folder(tmp_path / "saved")
    assert (ours.bos, ours.eos, ours.pad, ours.max_length) == (49406, 49407, 0, 77)
    for record in golden:
        assert ours.encode(record["text"]) == record.get("transformers_sd21", record["transformers"])


def test_words_added_by_textual_inversion(tmp_path, reference):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, reference, "sd15/tokenizer")
    (folder / "added_tokens.json").write_text('{"<cat-toy>": 49408, "Sks": 49409}')
    ours, theirs = Tokenizer.from_folder(folder), transformers.CLIPTokenizer.from_pretrained(folder)
    text = "a <cat-toy> and a sks dog"
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert 49408 in ours.encode(text)
    assert ours.vocab_size == 49410
    (folder / "added_tokens.json").write_text('{"<cat-toy>": 50000}')
    with pytest.raises(InvalidCheckpoint, match="50000"):
        Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(CAPTIONS, vocab_size=560, max_length=24)


def test_trained_tokenizer_is_opened_by_transformers(tmp_path, trained):
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (558, 559, 559)
    assert theirs.model_max_length == 24
    for text in CAPTIONS + AWKWARD:
        assert trained.encode(text) == theirs(text, add_special_tokens=False).input_ids, text
        padded = theirs(text, padding="max_length", truncation=True).input_ids
        assert list(trained.encode_padded(text)[0]) == padded, text


def test_trained_vocabulary(trained):
    assert (trained.vocab_size, trained.max_length) == (560, 24)
    assert trained.eos == trained.pad == 559  # the largest id, by which the text encoder finds the end
    assert len(trained.encode("the red house")) == 3
    again = Tokenizer.train(reversed(CAPTIONS), vocab_size=560, max_length=24)
    assert again._files == trained._files
    small = Tokenizer.train(["a b", "a b"], vocab_size=5000, max_length=24)
    assert small.vocab_size == 514


@settings(max_examples=200)
@given(st.text())
def test_every_text_is_written_in_known_ids(text):
    tokenizer = Tokenizer.train(["tiny"], vocab_size=514, max_length=8)
    ids, rest = tokenizer.encode_padded(text)
    assert len(ids) == 8
    assert max(ids) < 514
    assert text.endswith(rest)


def test_what_does_not_fit_is_returned(trained):
    text = "the red house left of a tree, at night. " * 4
    ids, rest = trained.encode_padded(text)
    assert len(ids) == 24
    assert (ids[0], ids[-1]) == (trained.bos, trained.eos)
    fitted = text[: len(text) - len(rest)]
    assert trained.encode(fitted) == list(ids[1:-1])
    assert rest
    assert text.endswith(rest)
    with pytest.raises(ValueError, match="at most 22"):
        trained.pad_ids(range(23))


def test_saving_keeps_every_file(tmp_path, reference):
    folder = folder_of(tmp_path, reference, "sd15/tokenizer")
    Tokenizer.from_folder(folder).save(tmp_path / "copy")
    files = [file for file in folder.iterdir() if file.is_file()]
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "copy" / file.name).read_bytes() == file.read_bytes()


def test_refused(tmp_path, trained):
    with pytest.raises(InvalidRequest, match="514"):
        Tokenizer.train(CAPTIONS, vocab_size=300, max_length=24)
    with pytest.raises(InvalidRequest, match="max_length"):
        Tokenizer.train(CAPTIONS, vocab_size=560, max_length=2)
    with pytest.raises(PromptError, match="Unicode"):
        trained.encode("half a pair \ud800")
    with pytest.raises(InvalidCheckpoint, match="no tokenizer"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        trained.save(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "[]"),
        ("vocab.json", "{"),
        ("vocab.json", '{"a": "b"}'),
        ("vocab.json", "[" * 100_000),
        ("merges.txt", "a b c"),
        ("merges.txt", "never seen"),
        ("merges.txt", "\udcff"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "7"),
        ("tokenizer_config.json", '{"model_max_length": -1}'),
        ("tokenizer_config.json", '{"model_max_length": "many"}'),
        ("special_tokens_map.json", '{"pad_token": {}}'),
        ("special_tokens_map.json", '{"pad_token": 7}'),
        ("special_tokens_map.json", '{"pad_token": ""}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": 7}}'),
        ("added_tokens.json", '{"x": "y"}'),
    ],
)
def test_broken_files(tmp_path, trained, name, content):
    trained.save(tmp_path)
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(InvalidCheckpoint, match=str(tmp_path)):
        Tokenizer.from_folder(tmp_path)


def test_length_unsaid_in_the_files(tmp_path, trained):
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert Tokenizer.from_folder(tmp_path).max_length == 77
    assert Tokenizer.from_folder(tmp_path, default_max_length=40).max_length == 40
