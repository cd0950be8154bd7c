"""Every checkpoint, adapter, embedding and network on this machine.

A catalogue searches folders, the hub's cache and what ships with Limner, and says of each file what it is,
for which family of models, how large, and by which hash and words it is known. Only headers are read; what
they say is kept in a cache on disk by the file's stamp. Files are hashed by a thread in the background.
"""

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from limner.errors import InvalidRequest, LimnerError, ModelNotFound, OutputError
from limner.files import FileStamp, read_json, walk_folder, whole_file

from .contents import FAMILY_NAMES, KINDS, Contents, Kind, describe_tensors, trigger_words
from .folders import describe_folder
from .hashes import file_hash, lora_hash
from .headers import read_header
from .layout import CONFIG, MODEL_INDEX, PICKLE_SUFFIXES
from .search import EMBEDDINGS, WEIGHTS, holds_embedding

_PREVIEWS = tuple(f"{end}.{form}" for end in ("", ".preview") for form in ("png", "jpg", "jpeg", "webp"))
_PLACES = ("shipped", "folder", "hub cache")
_MAY_BE_PICKLES = {"embedding", "controlnet", "t2i_adapter", "ip_adapter"}
_VERSION = 2  # of the cache: another number where `Contents` would differ for the same file
_SHOWN_SECONDS = 1.0  # after which new hashes are in the list of entries
_SOON = 2.0  # seconds in which an unknown name does not have the folders searched again
_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One model, adapter, embedding or network.

    Attributes:
        id: Unique in the catalogue, and stable: the kind and the name.
        kind: What it is.
        name: Path in its folder without the suffix; on the hub "organisation/name" or
            "organisation/name:folder/file".
        family: As `Contents.family`.
        path: The file, or the folder of several.
        stamp: Tells whether the file is still the same.
        where: "folder", "hub cache" or "shipped".
        bytes: Size of the weight files.
        parameters: Number of weights; 0 where that is not known, as for pickles.
        variant: Of the weight files in the folder of a checkpoint, such as "fp16".
        revision: Commit of a hub repository.
        sha256: SHA-256 of the file in hex; None until it is hashed, and for folders.
        tensors_sha256: What A1111 calls the hash of a LoRA: that of the tensors without the metadata.
        trigger_words: Words that a LoRA or embedding answers to.
        preview: An image next to the file.
        problem: Why it cannot be used, as far as headers tell.
    """

    id: str
    kind: Kind
    name: str
    family: str
    path: Path
    stamp: FileStamp
    where: str
    bytes: int
    parameters: int = 0
    variant: str | None = None
    revision: str | None = None
    sha256: str | None = None
    tensors_sha256: str | None = None
    trigger_words: tuple[str, ...] = ()
    preview: Path | None = None
    problem: str | None = None

    @property
    def short_hash(self) -> str | None:
        """The ten digits that A1111 and Civitai (AutoV2) show."""
        return self.sha256 and self.sha256[:10]

    def is_named(self, name: str) -> bool:
        """Whether a name, an id or the beginning of a hash means this entry."""
        own = (self.name, self.name + self.path.suffix, self.id)
        if any(one == name or one.endswith(f"/{name}") for one in own) or self.is_path(name):
            return True
        match = _HASH.fullmatch(name)
        hashes = filter(None, (self.sha256, self.tensors_sha256))
        return match is not None and any(one.startswith(match[1].lower()) for one in hashes)

    def is_path(self, name: str) -> bool:
        """Whether a name is this entry's path, or its end with a folder that is not part of the name."""
        path = str(self.path)
        return name == path or (path.endswith(f"/{name}") and name.count("/") > self.name.count("/"))


class Catalogue:
    """The models on this machine. Any thread may use it.

    Args:
        folders: Kind -> folders to search. A file is catalogued as what it is, whatever folder it is in; the
            kind of its folder counts only where its header cannot be read, as that of a pickle.
        shipped: Name -> folder of a checkpoint or network that comes with Limner.
        hub_cache: The hub's cache, to be searched too.
        cache: Folder for what was read and hashed.
    """

    def __init__(
        self,
        folders: Mapping[Kind, Sequence[Path]],
        *,
        cache: Path,
        shipped: Mapping[str, Path] | None = None,
        hub_cache: Path | None = None,
    ) -> None:
        self._folders, self._shipped = dict(folders), dict(shipped or {})
        self._hub_cache, self._cache = hub_cache, cache
        self._searching = threading.Lock()
        self._searched_at = -_SOON
        self._lock = threading.Lock()  # of what follows
        self._contents = _read_contents(cache)
        self._hashes: dict[FileStamp, tuple[str, str | None]] = {}
        self._entries: dict[str, Entry] | None = None
        self._listed: tuple[Entry, ...] | None = None  # the entries with their hashes
        self._hashing: threading.Thread | None = None

    def entries(self, kind: Kind | None = None, family: str | None = None) -> tuple[Entry, ...]:
        """The entries, by kind, place and name. The folders are searched the first time.

        All of them are the same tuple as before where nothing has changed.

        Args:
            family: Leaves out what is known to be for another family.
        """
        with self._lock:
            found = self._entries
        if found is None:
            found = self._search()
        with self._lock:
            if self._listed is None:
                self._listed = tuple(map(self._with_hashes, (self._entries or found).values()))
            listed = self._listed
        if kind is None and family is None:
            return listed
        return tuple(
            entry
            for entry in listed
            if kind in (None, entry.kind) and (family is None or entry.family in (family, ""))
        )

    def refresh(self) -> tuple[Entry, ...]:
        """Search the folders again, and hash new files in the background. Returns all entries."""
        self._search()
        with self._lock:
            if self._hashing is None and self._unhashed():
                self._hashing = threading.Thread(target=self._hash, name="limner-hashing", daemon=True)
                self._hashing.start()
        return self.entries()

    def wait_hashed(self, timeout: float | None = None) -> bool:
        """Wait for the files that `refresh` has found to be hashed. False after `timeout` seconds."""
        with self._lock:
            thread = self._hashing
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def find(self, kind: Kind, name: str, family: str | None = None) -> Entry:
        """The entry that a name, an id, or at least eight digits of a hash mean.

        Args:
            family: Of the model that it is for.

        Raises:
            ModelNotFound: There is none; the message has similar names.
            InvalidRequest: There are several.
        """
        named = self.named((kind,), name)
        found = [entry for entry in named if family is None or entry.family in (family, "")]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(f"{entry.id} ({entry.path})" for entry in found)
            raise InvalidRequest(f"{name!r} means {len(found)} files: {ids}", hint="give one of these ids")
        if named:
            families = " and ".join(sorted({FAMILY_NAMES[entry.family] for entry in named}))
            wanted = FAMILY_NAMES.get(family or "", str(family))
            raise ModelNotFound(f"the {_what(kind)} {name!r} is for {families}, expected one for {wanted}")
        raise self.not_found((kind,), name, family)

    def named(self, kinds: Sequence[Kind], name: str) -> tuple[Entry, ...]:
        """The entries of some kinds that a name, an id, or at least eight digits of a hash mean.

        Where there is none, the folders are searched again, though not within seconds of the last time.
        """
        found = self._named(kinds, name)
        if not found and time.monotonic() - self._searched_at >= _SOON:
            self._search()
            found = self._named(kinds, name)
        return found

    def _named(self, kinds: Sequence[Kind], name: str) -> tuple[Entry, ...]:
        found = tuple(entry for kind in kinds for entry in self.entries(kind) if entry.is_named(name))
        return tuple(entry for entry in found if entry.id == name) or found

    def not_found(self, kinds: Sequence[Kind], name: str, family: str | None = None) -> ModelNotFound:
        """The error for a name that means no entry of some kinds; it has similar names.

        Args:
            family: Of the model that it is for.
        """
        entries = [entry for kind in kinds for entry in self.entries(kind, family)]
        known = {entry.name.rpartition("/")[2].lower(): entry.name for entry in entries}
        near = [known[one] for one in get_close_matches(name.rpartition("/")[2].lower(), known)]
        like = f"; similar names: {', '.join(near)}" if near else ""
        return ModelNotFound(f"there is no {' or '.join(map(_what, kinds))} {name!r} in the catalogue{like}")

    def _with_hashes(self, entry: Entry) -> Entry:
        sha256, tensors = self._hashes.get(entry.stamp, (None, None))
        return replace(entry, sha256=sha256, tensors_sha256=tensors)

    def _search(self) -> dict[str, Entry]:
        with self._searching:
            search = _Search(self._contents)
            entries: dict[str, Entry] = {}
            for entry in sorted(
                search.all(self._shipped, self._folders, self._hub_cache),
                key=lambda one: (
                    KINDS.index(one.kind),
                    _PLACES.index(one.where),
                    one.name,
                    one.variant or "",
                ),
            ):
                taken = entry.id in entries  # by a file in another folder, or of another commit
                own = replace(entry, id=f"{entry.kind}:{entry.path}") if taken else entry
                entries.setdefault(own.id, own)
            if search.contents != self._contents:
                _write_contents(self._cache, search.contents)
            with self._lock:
                self._contents, self._entries, self._listed = search.contents, entries, None
            self._searched_at = time.monotonic()
            return entries

    def _unhashed(self) -> list[Entry]:
        return [e for e in (self._entries or {}).values() if e.stamp not in self._hashes and e.path.is_file()]

    def _hash(self) -> None:
        """Hash what is not hashed, until there is nothing left."""
        failed: set[FileStamp] = set()
        while True:
            with self._lock:
                self._listed = None
                waiting = [entry for entry in self._unhashed() if entry.stamp not in failed]
                if not waiting:
                    self._hashing = None
                    return
            shown_at = time.monotonic()
            for entry in waiting:
                try:
                    sha256 = file_hash(entry.path, cache=self._cache)
                    readable = entry.kind == "lora" and entry.problem is None
                    tensors = lora_hash(entry.path, cache=self._cache) if readable else None
                except (OSError, LimnerError):  # gone or broken
                    failed.add(entry.stamp)
                    continue
                with self._lock:
                    self._hashes[entry.stamp] = sha256, tensors
                    if time.monotonic() - shown_at > _SHOWN_SECONDS:
                        self._listed, shown_at = None, time.monotonic()


class _Search:
    """One search of all places.

    Attributes:
        contents: Stamp of each safetensors file met -> what it is.
    """

    def __init__(self, known: Mapping[str, Contents]) -> None:
        self.contents: dict[str, Contents] = {}
        self._known = known
        self._seen: set[Path] = set()  # without links

    def all(
        self,
        shipped: Mapping[str, Path],
        folders: Mapping[Kind, Sequence[Path]],
        hub_cache: Path | None,
    ) -> Iterator[Entry]:
        """The entries of all places."""
        for name, folder in shipped.items():
            if folder.is_dir():
                yield from self._folder(folder, name, "shipped")
        for kind, given in folders.items():
            for folder in given:
                yield from self._below(folder, kind)
        for snapshot in sorted(hub_cache.glob("models--*/snapshots/*")) if hub_cache else ():
            repo = snapshot.parts[-3].removeprefix("models--").replace("--", "/", 1)
            self._seen.clear()  # each commit is listed whole, though they share files
            for entry in self._below(snapshot, None):
                name = repo if entry.path == snapshot else f"{repo}:{entry.name}"
                id_ = _id(entry.kind, name, entry.variant)
                yield replace(entry, id=id_, name=name, where="hub cache", revision=snapshot.name)

    def _below(self, folder: Path, kind: Kind | None) -> Iterator[Entry]:
        """The entries of a folder and its subfolders.

        Args:
            kind: What the folder is for; None for a repository of the hub.
        """
        checkpoints: list[Path] = []
        for at, files in walk_folder(folder):
            if any(at.is_relative_to(checkpoint) for checkpoint in checkpoints):
                continue
            names = {file.name for file in files}
            if MODEL_INDEX in names:
                checkpoints.append(at)
            if MODEL_INDEX in names or CONFIG in names:
                if self._is_new(at):
                    name = folder.name if at == folder else at.relative_to(folder).as_posix()
                    yield from self._folder(at, name, "folder")
                continue
            for file in files:
                if not file.stem.endswith(".preview") and self._is_new(file):
                    whole = file.relative_to(folder)
                    name = whole.as_posix() if kind is None else whole.with_suffix("").as_posix()
                    yield from self._file(file, name, kind)

    def _is_new(self, path: Path) -> bool:
        real = path.resolve()
        new = real not in self._seen
        self._seen.add(real)
        return new

    def _folder(self, folder: Path, name: str, where: str) -> Iterator[Entry]:
        """The checkpoint, in each of its variants, or the network in a folder."""
        for found in describe_folder(folder, self._read):
            if found.contents.kind is not None:
                yield Entry(
                    id=_id(found.contents.kind, name, found.variant),
                    kind=found.contents.kind,
                    name=name,
                    family=found.contents.family,
                    path=folder,
                    stamp=FileStamp.of(folder),
                    where=where,
                    bytes=found.bytes,
                    parameters=found.contents.parameters,
                    variant=found.variant,
                    problem=found.problem,
                )

    def _file(self, file: Path, name: str, kind: Kind | None) -> Iterator[Entry]:
        suffix, problem = file.suffix.lower(), None
        if suffix in WEIGHTS:
            try:
                found = self._read(file)
            except LimnerError as error:
                found, problem = Contents(kind), error.message
        elif kind == "embedding" and suffix in EMBEDDINGS:
            found = Contents(kind if suffix != ".png" or holds_embedding(file) else None)
        elif suffix in PICKLE_SUFFIXES:
            found = Contents(kind)
            if kind not in _MAY_BE_PICKLES:
                problem = "a pickle, which is not opened; `limner convert` makes a .safetensors file of it"
        else:
            return
        if found.kind is None:
            return
        stamp, stem = FileStamp.of(file), file.with_suffix("").name
        previews = (file.with_name(stem + end) for end in _PREVIEWS)
        yield Entry(
            id=_id(found.kind, name, None),
            kind=found.kind,
            name=name,
            family=found.family,
            path=file,
            stamp=stamp,
            where="folder",
            bytes=stamp.size,
            parameters=found.parameters,
            trigger_words=_written_words(file.with_name(stem)) or found.trigger_words,
            preview=next((one for one in previews if one != file and one.is_file()), None),
            problem=problem,
        )

    def _read(self, file: Path) -> Contents:
        """What a safetensors file is. Raises LimnerError where its header is broken."""
        stamp = FileStamp.of(file)
        key = f"{stamp.path}|{stamp.size}|{stamp.mtime_ns}|{stamp.inode}"
        if (found := self._known.get(key)) is None:
            header = read_header(file)
            found = describe_tensors({k: info.shape for k, info in header.tensors.items()}, header.metadata)
        self.contents[key] = found
        return found


def _id(kind: Kind, name: str, variant: str | None) -> str:
    return f"{kind}:{name}" + (f"@{variant}" if variant else "")


def is_hash(name: str) -> bool:
    """Whether a name may be the beginning of a hash."""
    return _HASH.fullmatch(name) is not None


def _what(kind: Kind) -> str:
    return kind.replace("_", " ")


def _order(entry: Entry) -> tuple[int, int, str, str]:
    return KINDS.index(entry.kind), _PLACES.index(entry.where), entry.name, entry.variant or ""


def trigger_words_of(file: Path) -> tuple[str, ...]:
    """The words that the file of a LoRA or embedding answers to, by a note next to it and by its metadata.

    Raises:
        InvalidCheckpoint: Its header is broken.
    """
    noted = _written_words(file.with_suffix(""))
    return noted if file.suffix != ".safetensors" else (*noted, *trigger_words(read_header(file).metadata))


def _written_words(file: Path) -> tuple[str, ...]:
    """The trigger words in a note next to a file: A1111's `name.json`, or Civitai's `name.civitai.info`."""
    for end, field in ((".json", "activation text"), (".civitai.info", "trainedWords")):
        path = file.with_name(file.name + end)
        if path.is_file():
            try:
                given = read_json(path).get(field)
            except LimnerError:
                continue
            phrases = given if isinstance(given, list) else str(given or "").split(",")
            if words := tuple(filter(None, (str(phrase).strip() for phrase in phrases))):
                return words
    return ()


def _read_contents(cache: Path) -> dict[str, Contents]:
    """What an earlier catalogue has read."""
    try:
        stored = json.loads((cache / "catalogue.json").read_text(encoding="utf-8"))
        if stored["version"] != _VERSION:
            return {}
        return {
            key: Contents(**(values | {"trigger_words": tuple(values["trigger_words"])}))
            for key, values in stored["contents"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _write_contents(cache: Path, contents: Mapping[str, Contents]) -> None:
    text = json.dumps({"version": _VERSION, "contents": {key: asdict(one) for key, one in contents.items()}})
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with whole_file(cache / "catalogue.json") as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (OSError, OutputError):
        pass  # a cache that cannot be written costs time, not the result
