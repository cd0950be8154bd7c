"""CLIP's byte-level byte-pair tokenizer (Radford et al. 2021; BPE: Sennrich et al. 2016), read or trained.

Text is brought to NFC, its white space folded to single spaces, its case folded; it is cut into words, single
digits and runs of other signs; the bytes of each piece are merged pair by pair, the last symbol of a piece
carrying the suffix `</w>`. Vocabulary, merges, special tokens and their ids all come from the files.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from limner.errors import InvalidCheckpoint, InvalidRequest, OutputError, PromptError

_START, _END, _SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# transformers writes a model_max_length of 1e30 to say that it knows none.
_NO_LIMIT = 10**6

_CONFIG, _SPECIALS, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_FILES = ("tokenizer.json", "vocab.json", "merges.txt", _CONFIG, _SPECIALS, _ADDED)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids, equal to transformers' `CLIPTokenizer` on the same files.

    A special token typed in a text becomes its id. Where a checkpoint pads with `!` (SD 2.1, the second
    tokenizer of XL), each `!` in a text is therefore the padding id, as in transformers.

    Attributes:
        max_length: tokens the text encoder takes, start and end included (77 for CLIP).
        bos, eos, pad: ids of the start, end and padding tokens.
        vocab_size: the largest id + 1, added tokens included; the text encoder's embedding must be as large.
    """

    max_length: int
    bos: int
    eos: int
    pad: int
    vocab_size: int
    _backend: Backend = field(repr=False)
    _files: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def from_folder(
        cls, folder: str | PathLike[str], *, default_max_length: int = 77, pad: str | None = None
    ) -> Self:
        """Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, and the JSON files next to them.

        `special_tokens_map.json` overrules `tokenizer_config.json`, except where the latter lists
        `added_tokens_decoder`. Its `do_lower_case` is not read: no CLIP tokenizer ever heeded it.

        Args:
            folder: a tokenizer folder in the hub's layout.
            default_max_length: `max_length` where no file gives a `model_max_length`.
            pad: the padding token, whatever the files say.

        Raises:
            InvalidCheckpoint: a file is missing, unreadable or contradicts another.
        """
        folder = Path(folder)
        try:
            files = {name: (folder / name).read_bytes() for name in _FILES if (folder / name).is_file()}
        except OSError as error:
            raise InvalidCheckpoint(f"The tokenizer in {folder} cannot be read: {error}.") from error
        if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files.keys():
            raise InvalidCheckpoint(
                f"{folder} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt.",
                hint="Download the model again, with its tokenizer folder.",
            )
        try:
            return cls._from_files(files, default_max_length, pad)
        except InvalidCheckpoint as error:
            raise InvalidCheckpoint(f"The tokenizer in {folder} is broken: {error.message}") from error

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int, max_length: int) -> Self:
        """Learns a byte-pair vocabulary from captions.

        Ids are laid out as CLIP's: 256 bytes, the same with `</w>`, the merges, start, end. So every text
        can be written in known ids, and the end token has the largest, by which the text encoder finds it.

        Args:
            captions: training texts; their order does not matter.
            vocab_size: number of ids to aim at; fewer where the captions do not hold enough repeated pairs.
            max_length: tokens the text encoder will take, start and end included.

        Raises:
            InvalidRequest: `vocab_size` below the 514 that every vocabulary needs, or `max_length` below 3.
        """
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = dict.fromkeys([*alphabet, *(letter + _SUFFIX for letter in alphabet)])
        if vocab_size < len(vocabulary) + 2:
            raise InvalidRequest(
                f"vocab_size is {vocab_size}, but bytes and special tokens need {len(vocabulary) + 2}."
            )
        if max_length < 3:
            raise InvalidRequest(f"max_length is {max_length}, but start, end and one token need 3.")

        learner = _clip_backend(BPE(end_of_word_suffix=_SUFFIX))
        learner.train_from_iterator(
            captions,
            BpeTrainer(
                # Counted without the end forms of letters that no caption ends in: never too few merges.
                vocab_size=vocab_size,
                min_frequency=2,
                show_progress=False,
                initial_alphabet=alphabet,
                end_of_word_suffix=_SUFFIX,
            ),
        )
        merges = []
        for left, right in json.loads(learner.to_str())["model"]["merges"]:
            if len(vocabulary) + 2 >= vocab_size and left + right not in vocabulary:
                break
            merges.append(f"{left} {right}")
            vocabulary[left + right] = None  # two merges may make the same token

        ids = {token: index for index, token in enumerate([*vocabulary, _START, _END])}
        specials = {
            "bos_token": _saved_special(_START),
            "eos_token": _saved_special(_END),
            "unk_token": _saved_special(_END),
            "pad_token": _END,
        }
        typed = {
            key: {"__type": "AddedToken", **v} if isinstance(v, dict) else v for key, v in specials.items()
        }
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": max_length,
            "do_lower_case": True,
            **typed,
        }
        files = {
            "vocab.json": json.dumps(ids, ensure_ascii=False).encode(),
            "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
            _CONFIG: json.dumps(config, indent=2).encode(),
            _SPECIALS: json.dumps(specials, indent=2).encode(),
        }
        return cls._from_files(files, max_length)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the files this tokenizer was made from, byte for byte, into `folder` (made if absent).

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self._files.items():
                (folder / name).write_bytes(content)
        except OSError as error:
            raise OutputError(f"The tokenizer cannot be written to {folder}: {error}.") from error

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without start and end.

        Raises:
            PromptError: `text` holds half a surrogate pair, which no tokenizer can read.
        """
        ids, _ = self._encode(text)
        return ids

    def encode_padded(self, text: str) -> tuple[tuple[int, ...], str]:
        """Ids of `text` as a text encoder takes them, and the part of the text that did not fit.

        Returns:
            (ids, rest): `max_length` ids, start + tokens + end + padding; `rest` is empty when all fitted.

        Raises:
            PromptError: as `encode`.
        """
        ids, starts = self._encode(text)
        room = self.max_length - 2
        rest = text[starts[room] :] if len(ids) > room else ""
        return self.pad_ids(ids[:room]), rest

    def encode_spans(self, text: str) -> list[tuple[int, int, int]]:
        """Ids of `text`, each with the begin and end of its characters. Raises as `encode`."""
        encoding = self._encoding(text)
        return [(index, *span) for index, span in zip(encoding.ids, encoding.offsets, strict=True)]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Ids as the vocabulary has them; where a word ends, a token ends in `</w>`."""
        return [self._backend.id_to_token(index) or "" for index in ids]

    def index(self, token: str) -> int | None:
        """The id of a token as the vocabulary has it."""
        index: int | None = self._backend.token_to_id(token)
        return index

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: a word's tokens together, a space behind each word."""
        text: str = decoders.ByteLevel().decode(self.tokens(ids))
        return text.replace(_SUFFIX, " ").strip()

    def pad_ids(self, ids: Iterable[int]) -> tuple[int, ...]:
        """start + `ids` + end + padding to `max_length`; the caller has seen to it that `ids` fit."""
        framed = (self.bos, *ids, self.eos)
        if len(framed) > self.max_length:
            raise ValueError(f"{len(framed) - 2} tokens given, at most {self.max_length - 2} fit")
        return framed + (self.pad,) * (self.max_length - len(framed))

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and where in `text` each begins."""
        encoding = self._encoding(text)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _encoding(self, text: str) -> Any:
        try:
            return self._backend.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise PromptError(
                f"The prompt is not valid Unicode text: {error}.", hint="Give the prompt in UTF-8."
            ) from error

    @classmethod
    def _from_files(
        cls, files: Mapping[str, bytes], default_max_length: int, padding: str | None = None
    ) -> Self:
        config = _json(files, _CONFIG)
        specials = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
        specials |= {key: config[key] for key in specials if config.get(key) is not None}
        if "added_tokens_decoder" not in config:
            overruling = _json(files, _SPECIALS)
            specials |= {key: overruling[key] for key in specials if overruling.get(key) is not None}
        specials |= {} if padding is None else {"pad_token": padding}

        try:
            named = [_special(specials[key]) for key in ("bos_token", "eos_token", "unk_token", "pad_token")]
            backend = _backend(files, unknown=named[2].content)
            listed = _listed_tokens(config, files)
        except InvalidCheckpoint:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception
            raise InvalidCheckpoint(f"{error or type(error).__name__}.") from error

        for index, token in sorted(listed.items()):
            backend.add_tokens([token])
            if backend.token_to_id(token.content) != index:
                raise InvalidCheckpoint(
                    f"added token {token.content!r} should have id {index}, "
                    f"but the vocabulary makes it {backend.token_to_id(token.content)}."
                )
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_tokens([token for token in named if token.content not in known])

        bos, eos, pad = (_id(backend, token) for token in (named[0], named[1], named[3]))
        max_length = config.get("model_max_length", default_max_length)
        if isinstance(max_length, int | float) and max_length >= _NO_LIMIT:
            max_length = default_max_length
        if not isinstance(max_length, int) or max_length < 3:
            raise InvalidCheckpoint(
                f"model_max_length is {max_length!r}, expected a whole number of at least 3."
            )
        return cls(
            max_length=max_length,
            bos=bos,
            eos=eos,
            pad=pad,
            vocab_size=max(backend.get_vocab().values()) + 1,
            _backend=backend,
            _files=files,
        )


def _clip_backend(model: BPE) -> Backend:
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


def _backend(files: Mapping[str, bytes], unknown: str) -> Backend:
    if "tokenizer.json" in files:
        backend = Backend.from_str(files["tokenizer.json"].decode())
        backend.no_padding()
        backend.no_truncation()
        return backend
    lines = files["merges.txt"].decode().split("\n")
    pairs = []
    for line in lines:
        if line and not line.startswith("#version"):
            left, right = line.split(" ")
            pairs.append((left, right))
    return _clip_backend(
        BPE(vocab=_json(files, "vocab.json"), merges=pairs, unk_token=unknown, end_of_word_suffix=_SUFFIX)
    )


def _id(backend: Backend, token: AddedToken) -> int:
    index = backend.token_to_id(token.content)
    if index is None:
        raise InvalidCheckpoint(f"the special token {token.content!r} is not in the vocabulary.")
    return index


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no such file."""
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{name} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise InvalidCheckpoint(f"{name} should hold a JSON object.")
    return value


def _special(token: str | dict[str, Any]) -> AddedToken:
    """A special token. A plain string is looked for before normalisation; a dict says for itself."""
    if isinstance(token, str):
        return AddedToken(token, special=True)
    flags = {key: bool(token.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(str(token["content"]), special=True, **flags)


def _listed_tokens(config: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[int, AddedToken]:
    """Tokens beyond the vocabulary, such as those of textual inversion, by the ids they must have."""
    if "added_tokens_decoder" in config:
        listed = {}
        for index, token in config["added_tokens_decoder"].items():
            flags = {key: value for key, value in token.items() if key not in ("content", "__type")}
            listed[int(index)] = AddedToken(token["content"], **flags)
        return listed
    return {index: AddedToken(text, normalized=True) for text, index in _json(files, _ADDED).items()}


def _saved_special(content: str) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
