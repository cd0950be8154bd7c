"""The adapters of a model: found by name, read once, and merged into weights or rows of a batch."""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from limner.adapters.adapter import Adapter, read_adapter
from limner.adapters.embeddings import Embedding, read_embedding
from limner.adapters.targets import Targets, find_targets
from limner.catalogue.adapters import use_adapters
from limner.catalogue.search import (
    EMBEDDINGS,
    WEIGHTS,
    Choice,
    NamedFile,
    choose_fitting,
    find_named,
    holds_embedding,
    list_files,
    not_found,
)
from limner.errors import LimnerError
from limner.files import FileStamp
from limner.forks import renew_after_fork
from limner.nn.clip import CLIPTextModel
from limner.nn.layers import LowRankTerm
from limner.nn.unet import UNet2DConditionModel
from limner.request import Lora
from limner.request.networks import UsedAdapter
from limner.weights.checkpoint import Checkpoint
from limner.weights.load import build_on_meta

_KEPT = 64  # files in the cache
_KEPT_TERMS = 16  # sets of adapters whose low-rank terms are kept


class AdapterLibrary:
    """The adapter files that a model can use, each read when it is first named. Any thread may use it.

    Args:
        checkpoint: The model.
        loras: Folders of LoRA files, which are searched for the names in requests.
        embeddings: Folders of textual inversions, whose file names are words in prompts.
        words: Word -> file of a textual inversion, whatever its name.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        loras: Sequence[Path] = (),
        embeddings: Sequence[Path] = (),
        words: Mapping[str, Path] | None = None,
    ) -> None:
        self._checkpoint, self._loras, self._embeddings = checkpoint, loras, embeddings
        self._words = {word.lower(): path for word, path in (words or {}).items()}
        self._read: OrderedDict[FileStamp, Adapter | LimnerError] = OrderedDict()
        self._low_rank: dict[FileStamp, bool] = {}
        self._terms: OrderedDict[tuple[UsedAdapter, ...], dict[str, LowRankTerm]] = OrderedDict()
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked process: make a new lock, as another thread may have held the old one."""
        self._lock = threading.RLock()

    @cached_property
    def targets(self) -> Targets:
        """The parameters that adapters can change in this model, and their names in files."""
        networks: dict[str, UNet2DConditionModel | CLIPTextModel] = {
            "unet": build_on_meta(lambda: UNet2DConditionModel(self._checkpoint.unet_config))
        }
        for part, config in self._checkpoint.text_configs.items():
            networks[part] = build_on_meta(lambda config=config: CLIPTextModel(config))  # type: ignore[misc]
        return find_targets(networks)

    def used(self, loras: Sequence[Lora]) -> tuple[UsedAdapter, ...]:
        """The adapters of a request. Those of weight 0 are left out, and weights of the same file are summed.

        Raises:
            ModelNotFound: There is no such file.
            PickleRefused: There is one, but it is a pickle.
            InvalidCheckpoint, UnsupportedModel: It cannot be used with this model.
        """
        return use_adapters(loras, self._find)

    def read(self, used: UsedAdapter) -> Adapter:
        """An adapter's file. Its tensors are memory-mapped."""
        return self._read_file(used.stamp)

    def _read_file(self, stamp: FileStamp) -> Adapter:
        """Raises as `read_adapter`."""
        with self._lock:
            if stamp not in self._read:
                try:
                    self._read[stamp] = read_adapter(stamp.path, self.targets)
                except LimnerError as error:
                    self._read[stamp] = error  # cached, as files of other families are requested often
                while len(self._read) > _KEPT:
                    self._read.popitem(last=False)
            self._read.move_to_end(stamp)
            found = self._read[stamp]
        if isinstance(found, LimnerError):
            raise type(found)(found.message, hint=found.hint)
        return found

    def _find(self, name: str) -> Choice[Adapter]:
        """The file that a name means and that fits this model."""
        files = find_named(name, self._loras, WEIGHTS)
        if not files:
            error = not_found("LoRA", name, self._loras, WEIGHTS)
            error.hint = error.hint or "give the path of a file, or its folder as `lora_dirs`"
            error.fields = ("loras",)
            raise error
        choice = choose_fitting(
            "LoRA", name, files, lambda path: self._read_file(FileStamp.of(path.resolve()))
        )
        return replace(choice, warnings=choice.warnings + choice.value.warnings)

    def warnings(self, used: Sequence[UsedAdapter]) -> tuple[str, ...]:
        """Tensors of the adapters that have no effect, and the files chosen where several have the name."""
        return tuple(warning for one in used for warning in (*one.warnings, *self.read(one).warnings))

    def weighted(self, used: Sequence[UsedAdapter]) -> list[tuple[Adapter, dict[str, float]]]:
        """The adapters with their weights by part, as `patched_weights` takes them."""
        texts = self._checkpoint.text_configs
        return [(self.read(u), {"unet": u.weight, **dict.fromkeys(texts, u.text_weight)}) for u in used]

    def is_low_rank(self, used: UsedAdapter, modules: frozenset[str]) -> bool:
        """Whether its changes of the U-Net are low-rank changes of these modules' weights alone.

        Such an adapter can be applied to single rows of a batch.
        """
        key = used.stamp
        with self._lock:
            if key not in self._low_rank:
                patches, shapes = self.read(used).patches.get("unet", {}), self.targets.shapes["unet"]
                self._low_rank[key] = all(
                    name.removesuffix(".weight") in modules and patch.low_rank(shapes[name]) is not None
                    for name, patch in patches.items()
                )
            return self._low_rank[key]

    def terms(self, rows: Sequence[tuple[UsedAdapter, ...]]) -> dict[str, list[LowRankTerm | None]]:
        """The low-rank terms that the adapters of each row add in a forward pass of the U-Net.

        Those of the last adapters are kept, as the same rows usually share the next steps too.

        Args:
            rows: The adapters of each row.

        Returns:
            Module -> the term of each row, as `Conditions.low_rank`.
        """
        with self._lock:
            joined = {adapters: self._joined(adapters) for adapters in dict.fromkeys(rows)}
            while len(self._terms) > max(_KEPT_TERMS, len(joined)):
                self._terms.popitem(last=False)
        modules = dict.fromkeys(module for terms in joined.values() for module in terms)
        return {module: [joined[adapters].get(module) for adapters in rows] for module in modules}

    def _joined(self, adapters: tuple[UsedAdapter, ...]) -> dict[str, LowRankTerm]:
        """Module -> the factors of adapters that apply together, concatenated."""
        if adapters not in self._terms:
            parts: dict[str, list[LowRankTerm]] = {}
            for used in adapters:
                for name, patch in self.read(used).patches.get("unet", {}).items():
                    low_rank = patch.low_rank(self.targets.shapes["unet"][name])
                    assert low_rank is not None
                    down, up, scale = low_rank
                    factors = parts.setdefault(name.removesuffix(".weight"), [])
                    factors.append((down.flatten(1), up * (scale * used.weight)))
            self._terms[adapters] = {
                module: (torch.cat([down for down, _ in some]), torch.cat([up for _, up in some], dim=1))
                for module, some in parts.items()
            }
        self._terms.move_to_end(adapters)
        return self._terms[adapters]

    def words(self, used: Sequence[UsedAdapter]) -> "Words":
        """The words of textual inversions: those in the folders, and those that adapter files contain.

        A file whose name is not unique also has a word with its folder: "sd15/negative".
        """
        files: dict[str, list[NamedFile]] = {}
        for file in list_files(self._embeddings, EMBEDDINGS):
            files.setdefault(file.stem.lower(), []).append(file)
        for same in [same for same in files.values() if len(same) > 1]:
            files |= {file.name.lower(): [file] for file in same if "/" in file.name}
        files |= {word: [NamedFile(path, word)] for word, path in self._words.items()}
        contained = {one.name.lower(): one for u in used for one in self.read(u).embeddings}
        first_id = max(config.vocab_size for config in self._checkpoint.text_configs.values())
        return Words(files, contained, first_id, lambda path: read_embedding(path, self.targets.widths))


class Words:
    """Words with vectors of their own, which get token ids above the vocabulary. Any thread may use it.

    Args:
        files: Word in lower case -> the files of this name. When a prompt first has the word, the first file
            that fits the model is read.
        contained: Words whose vectors are already read.
        first_id: The first id above the tokenizers' vocabularies.
        read: Reads a file. Raises LimnerError where it does not fit the model.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[NamedFile]],
        contained: Mapping[str, Embedding],
        first_id: int,
        read: Callable[[Path], Embedding],
    ) -> None:
        self._files, self._contained, self._first_id, self._reader = files, contained, first_id, read
        self._ids: dict[str, tuple[int, ...]] = {}
        self._vectors: list[Mapping[str, Tensor]] = []  # of each word met so far, in the order of their ids
        self._warnings: dict[str, tuple[str, ...]] = {}
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked process: make a new lock, as another thread may have held the old one."""
        self._lock = threading.RLock()

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches any of the words where it stands alone; None if there are no words."""
        names = sorted({*self._files, *self._contained}, key=len, reverse=True)
        if not names:
            return None
        return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])", re.IGNORECASE)

    def files_in(self, text: str) -> tuple[Path, ...]:
        """The files whose words a text has."""
        found = [] if self.pattern is None else [match.lower() for match in self.pattern.findall(text)]
        return tuple(file.path for word in dict.fromkeys(found) for file in self._files.get(word, ()))

    def ids(self, word: str) -> tuple[int, ...]:
        """One id for each vector of a word; empty if no file of it fits this model."""
        word = word.lower()
        with self._lock:
            if word not in self._ids:
                embedding = self._contained.get(word) or self._read(word)
                first = self._first_id + sum(map(_count, self._vectors))
                vectors = {} if embedding is None else embedding.vectors
                self._ids[word] = tuple(range(first, first + _count(vectors)))
                self._vectors += [vectors] if vectors else []
            return self._ids[word]

    def _read(self, word: str) -> Embedding | None:
        files = self._files[word]
        if len(files) > 1:  # images next to an embedding are previews, unless they hold one
            files = [
                file for file in files if file.path.suffix.lower() != ".png" or holds_embedding(file.path)
            ]
        try:
            choice = choose_fitting("embedding", word, files, self._reader)
        except LimnerError as error:
            self._warnings[word] = (f"{word!r} is read as an ordinary word: {error.message}",)
            return None
        self._warnings[word] = choice.warnings
        return choice.value

    def warnings(self, word: str) -> tuple[str, ...]:
        """Why a word is read as an ordinary word, or which of several files is used."""
        return self._warnings.get(word.lower(), ())

    def table(self, part: str) -> Tensor | None:
        """The vectors [n, C] of all words met so far, for one text encoder, in the order of their ids."""
        with self._lock:
            if not self._vectors:
                return None
            return torch.cat([vectors[part].float() for vectors in self._vectors])


def _count(vectors: Mapping[str, Tensor]) -> int:
    """Number of tokens that an embedding takes."""
    return len(next(iter(vectors.values()), ()))
