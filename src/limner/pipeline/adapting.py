"""The adapters of a model: found by name, read once, and given to its networks."""

import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from limner.adapters.adapter import Adapter, read_adapter
from limner.adapters.embeddings import Embedding, read_embedding
from limner.adapters.targets import Targets, find_targets
from limner.errors import InvalidRequest, LimnerError, ModelNotFound
from limner.nn.clip import CLIPTextModel
from limner.nn.unet import UNet2DConditionModel
from limner.prompts.networks import ExtraNetwork, take_networks
from limner.request import GenerationRequest, Lora
from limner.weights.checkpoint import Checkpoint
from limner.weights.load import build_on_meta

ADAPTER_SUFFIX = ".safetensors"
EMBEDDING_SUFFIXES = (".safetensors", ".pt", ".bin", ".png")

_TAGS = frozenset({"lora", "lyco"})
_KEPT = 64  # files


@dataclass(frozen=True)
class UsedAdapter:
    """An adapter with its weights, as a call names it.

    Attributes:
        path: of its file.
        stamp: time of change and size of the file: another file under the same name is another adapter.
        weight, text_weight: of its effect on the U-Net and on the text encoders.
    """

    path: Path
    stamp: tuple[int, int]
    weight: float
    text_weight: float


class AdapterLibrary:
    """The adapter files that a model can use.

    Args:
        loras: folders with LoRA files, searched for the names in requests, subfolders included.
        embeddings: folders with textual inversions, whose names are words of the prompt language.
        words: others, and their files.
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
        self._read: OrderedDict[tuple[Path, tuple[int, int]], Adapter] = OrderedDict()
        self._low_rank: dict[tuple[Path, tuple[int, int]], bool] = {}
        self._terms: dict[tuple[tuple[UsedAdapter, ...], ...], dict[str, tuple[Tensor, Tensor]]] = {}

    @cached_property
    def targets(self) -> Targets:
        """What an adapter can change in this model."""
        networks: dict[str, UNet2DConditionModel | CLIPTextModel] = {
            "unet": build_on_meta(lambda: UNet2DConditionModel(self._checkpoint.unet_config))
        }
        for part, config in self._checkpoint.text_configs.items():
            networks[part] = build_on_meta(lambda config=config: CLIPTextModel(config))  # type: ignore[misc]
        return find_targets(networks)

    def used(self, loras: Sequence[Lora]) -> tuple[UsedAdapter, ...]:
        """The adapters of a request, those of weight 0 left out; the same one twice is one of both weights.

        Raises:
            ModelNotFound: there is no such file.
            InvalidCheckpoint, UnsupportedModel: it cannot be used with this model.
        """
        weights: dict[Path, tuple[float, float]] = {}
        for lora in loras:
            path = self._find(lora.name)
            unet, text = weights.get(path, (0.0, 0.0))
            weights[path] = unet + lora.weight, text + lora.for_text
        used = []
        for path, (unet, text) in sorted(weights.items()):
            status = path.stat()
            adapter = UsedAdapter(path, (status.st_mtime_ns, status.st_size), unet, text)
            self.read(adapter)
            if unet or text:
                used.append(adapter)
        return tuple(used)

    def read(self, used: UsedAdapter) -> Adapter:
        """The file of an adapter; its tensors are mapped, not read."""
        key = used.path, used.stamp
        if key not in self._read:
            self._read[key] = read_adapter(used.path, self.targets)
            if len(self._read) > _KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(key)
        return self._read[key]

    def weighted(self, used: Sequence[UsedAdapter]) -> list[tuple[Adapter, dict[str, float]]]:
        """Adapters with their weights by part."""
        texts = self._checkpoint.text_configs
        return [(self.read(u), {"unet": u.weight, **dict.fromkeys(texts, u.text_weight)}) for u in used]

    def is_low_rank(self, used: UsedAdapter, modules: frozenset[str]) -> bool:
        """Whether all that it changes in the U-Net are weights of these modules, each by a LoRA."""
        key = used.path, used.stamp
        if key not in self._low_rank:
            patches, shapes = self.read(used).patches.get("unet", {}), self.targets.shapes["unet"]
            self._low_rank[key] = all(
                name.removesuffix(".weight") in modules and patch.low_rank(shapes[name]) is not None
                for name, patch in patches.items()
            )
        return self._low_rank[key]

    def terms(self, rows: tuple[tuple[UsedAdapter, ...], ...]) -> dict[str, tuple[Tensor, Tensor]]:
        """What adapters of low rank add to each row of a forward pass of the U-Net, `Terms` of its backend.

        Kept for as long as the same rows go on together.
        """
        if rows not in self._terms:
            self._terms.clear()
            self._terms[rows] = self._joined(rows)
        return self._terms[rows]

    def _joined(self, rows: tuple[tuple[UsedAdapter, ...], ...]) -> dict[str, tuple[Tensor, Tensor]]:
        parts: dict[str, list[list[tuple[Tensor, Tensor]]]] = {}
        for row, adapters in enumerate(rows):
            for used in adapters:
                for name, patch in self.read(used).patches.get("unet", {}).items():
                    low_rank = patch.low_rank(self.targets.shapes["unet"][name])
                    assert low_rank is not None
                    down, up, scale = low_rank
                    of_rows = parts.setdefault(name.removesuffix(".weight"), [[] for _ in rows])
                    of_rows[row].append((down.flatten(1), up * (scale * used.weight)))
        return {module: _padded(of_rows) for module, of_rows in parts.items()}

    def words(self, used: Sequence[UsedAdapter]) -> "Words":
        """The words that textual inversions add, those that come along with adapters included."""
        files = {
            path.stem.lower(): path
            for folder in self._embeddings
            for path in sorted(folder.rglob("*"))
            if path.suffix in EMBEDDING_SUFFIXES
        } | self._words
        brought = {one.name.lower(): one for u in used for one in self.read(u).embeddings}
        first_id = max(config.vocab_size for config in self._checkpoint.text_configs.values())
        return Words(files, brought, first_id, lambda path: read_embedding(path, self.targets.widths))

    def _find(self, name: str) -> Path:
        path = Path(os.path.expanduser(name))
        if path.suffix == ADAPTER_SUFFIX and path.is_file():
            return path.resolve()
        for folder in self._loras:
            for found in sorted(folder.rglob(f"*{ADAPTER_SUFFIX}")):
                if found.stem == name or found.relative_to(folder).with_suffix("").as_posix() == name:
                    return found.resolve()
        where = f"not in {', '.join(map(str, self._loras))}" if self._loras else "no folder of them was given"
        raise ModelNotFound(
            f"there is no LoRA {name!r}: no such .safetensors file, and {where}",
            hint="name a file, or give the folder that it is in: --lora-dir, lora_dirs=",
        )


def _padded(rows: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Each row's factors side by side, filled up with zeros: down [R, rank, in] and up [R, out, rank]."""
    rank = max(sum(len(down) for down, _ in row) for row in rows)
    some_down, some_up = next(row[0] for row in rows if row)
    down = torch.zeros(len(rows), rank, some_down.shape[1])
    up = torch.zeros(len(rows), some_up.shape[0], rank)
    for row, factors in enumerate(rows):
        at = 0
        for one_down, one_up in factors:
            down[row, at : at + len(one_down)] = one_down
            up[row, :, at : at + len(one_down)] = one_up
            at += len(one_down)
    return down, up


class Words:
    """Words that stand for vectors of their own, by ids beyond the vocabulary.

    Args:
        files: word in lower case -> its file, read when the word is first met.
        brought: words that are there already.
        first_id: the first id that no tokenizer gives.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        brought: Mapping[str, Embedding],
        first_id: int,
        read: Callable[[Path], Embedding],
    ) -> None:
        self._files, self._brought, self._first_id, self._reader = files, brought, first_id, read
        self._ids: dict[str, tuple[int, ...]] = {}
        self._vectors: list[Mapping[str, Tensor]] = []  # of each word that was met, in the order of their ids
        self._unfit: dict[str, str] = {}  # why a word's file cannot be used

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches any of the words where it stands alone; None where there is none."""
        names = sorted({*self._files, *self._brought}, key=len, reverse=True)
        if not names:
            return None
        return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])", re.IGNORECASE)

    def ids(self, word: str) -> tuple[int, ...]:
        """One id for each vector of a word; none where its file is not for this model."""
        word = word.lower()
        if word not in self._ids:
            try:
                embedding = self._brought.get(word) or self._reader(self._files[word])
            except LimnerError as error:
                self._unfit[word] = error.message
                self._ids[word] = ()
                return ()
            first = self._first_id + sum(len(next(iter(v.values()))) for v in self._vectors)
            count = len(next(iter(embedding.vectors.values())))
            self._ids[word] = tuple(range(first, first + count))
            self._vectors.append(embedding.vectors)
        return self._ids[word]

    def warnings(self, word: str) -> tuple[str, ...]:
        """Why a word is read as any other word, where its file cannot be used."""
        reason = self._unfit.get(word.lower())
        return () if reason is None else (f"{word!r} is read as a word, for {reason}",)

    def table(self, part: str) -> Tensor | None:
        """The vectors [n, C] of all words met so far, for one text encoder, in the order of their ids."""
        if not self._vectors:
            return None
        return torch.cat([vectors[part].float() for vectors in self._vectors])


def with_loras(request: GenerationRequest) -> GenerationRequest:
    """A request whose prompt's `<lora:…>` tags have become its `loras`.

    Raises:
        InvalidRequest: a tag whose weights are no numbers.
    """
    if request.prompt_syntax == "literal":
        return request
    prompt, tags = take_networks(request.prompt, _TAGS)
    if not tags:
        return request
    loras = (*request.loras, *map(_lora, tags))
    return request.model_copy(update={"prompt": prompt, "loras": loras})


def _lora(tag: ExtraNetwork) -> Lora:
    """AUTOMATIC1111's order: name, weight for the text encoder, weight for the U-Net if that is another."""
    name, *numbers = tag.positional
    try:
        if len(numbers) > 2 or tag.named.keys() - {"te", "unet"}:
            raise ValueError
        weights = [float(number) for number in numbers] or [1.0]
        text = float(tag.named.get("te", weights[0]))
        unet = float(tag.named.get("unet", weights[1] if len(weights) > 1 else text))
        if not (math.isfinite(text) and math.isfinite(unet)):
            raise ValueError
    except ValueError:
        raise InvalidRequest(
            f"<{tag.kind}:{':'.join(tag.items)}> cannot be read",
            hint="expected <lora:name>, <lora:name:0.8> or <lora:name:text weight:U-Net weight>",
        ) from None
    return Lora(name=name, weight=unet, text_weight=None if text == unet else text)
