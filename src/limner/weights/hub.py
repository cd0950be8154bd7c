"""From a model's name to its folder: the shipped model, a folder, or a repository on the Hugging Face hub.

Of a repository only the needed files are fetched, never a pickle. What is in the hub's cache serves when the
hub cannot be reached.
"""

import difflib
import glob
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.errors import InvalidRequest, LimnerError, ModelNotFound, PickleRefused, UnsupportedModel

from .checkpoint import (
    MODEL_INDEX,
    PICKLE_SUFFIXES,
    TOKENIZER_FILES,
    TOKENIZER_OF,
    choose_weights,
    read_checkpoint,
    read_model_index,
    variants_of,
    weight_variants,
)
from .control import CONFIG, STEM
from .single import read_single_file
from .tensors import PICKLE_HINT, read_index

SHIPPED = {"picturebook": Path(__file__).resolve().parents[1] / "picturebook" / "model"}

SHIPPED_NETWORKS = {
    "picturebook-edges": Path(__file__).resolve().parents[1] / "picturebook" / "edges",
}
"""ControlNets that come with Limner."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILE = re.compile(rf"({_HUB_ID.pattern}):([\w.-]+(?:/[\w.-]+)*)")
_TOKENIZER_REPO = "openai/clip-vit-large-patch14"
_TIMEOUT = 10.0  # seconds, for the hub to answer before the cache is used
_TOKEN_HINT = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Access:
    """How the hub is asked.

    Attributes:
        cache_dir: where files are kept; None is the hub's own cache.
        token: of an account; None is that of `hf auth login`, and False none.
        local_files_only: not at all: what is in the cache serves.
    """

    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """For the functions of huggingface_hub that fetch files."""
        return {
            "cache_dir": self.cache_dir,
            "token": self.token,
            "local_files_only": self.local_files_only,
        }


ANYWHERE = Access()


@dataclass(frozen=True)
class LocatedModel:
    """Where a model is.

    Attributes:
        name: as it was asked for.
        folder: in the diffusers layout, or a single file; not read yet.
        tokenizer: the files of CLIP's tokenizer, for a single file.
        warnings: what the caller should know, such as that the hub could not be reached.
    """

    name: str
    folder: Path
    warnings: tuple[str, ...] = ()
    tokenizer: Path | None = None


@dataclass(frozen=True)
class ModelInfo:
    """A model that is on this machine.

    Attributes:
        name, revision, variant: what `locate_model` finds it by; the revision is a commit, and None for a
            shipped model.
        where: "shipped" or "hub cache".
        family: "sd1", "sd2", "xl", "xl_refiner" or "custom".
        parameters: number of weights in all components.
        bytes: size of the weight files.
        problem: why it cannot be used; then family is "" and the figures are 0.
    """

    name: str
    revision: str | None
    variant: str | None
    path: Path
    where: str
    family: str
    parameters: int
    bytes: int
    problem: str | None = None


def locate_model(
    reference: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    access: Access = ANYWHERE,
) -> LocatedModel:
    """Find a model's folder or file, fetching it from the hub if need be.

    Args:
        reference: "picturebook" (the model that ships with Limner), a folder, a single file
            (.safetensors), or "organisation/name" on the hub. What exists here is preferred to the hub.
        revision: branch, tag or commit on the hub; None is its main branch.
        variant: which weight files to fetch from the hub, such as "fp16".
        access: how the hub is asked.

    Raises:
        ModelNotFound: nothing of this name, revision or variant, or no access to it.
        InvalidRequest: a revision of something that is not on the hub.
        PickleRefused, UnsupportedModel, InvalidCheckpoint: what was found cannot be used; of a hub
            repository this is told before the weights are fetched.
    """
    name = str(reference)
    path = Path(os.path.expanduser(reference))
    shipped = SHIPPED.get(name) if isinstance(reference, str) else None
    there = os.path.exists(path)  # unlike Path.exists, false for what cannot be a path
    if shipped is None and not there and isinstance(reference, str) and _HUB_ID.fullmatch(reference):
        return _from_hub(reference, revision, variant, access)
    if revision is not None:
        raise InvalidRequest(f"revision {revision!r} of {name!r}: only models on the hub have revisions")
    if shipped is not None and not (shipped / MODEL_INDEX).is_file():
        raise ModelNotFound(
            f"the shipped model {name!r} is missing from {shipped}",
            hint="install Limner again, it is incomplete",
        )
    if shipped is None and path.suffix == ".safetensors" and os.path.isfile(path):
        if variant is not None:
            raise InvalidRequest(f"variant {variant!r} of {name!r}: a single file has no variants")
        read_single_file(path)  # before a tokenizer is fetched in vain
        return LocatedModel(name, path, tokenizer=clip_tokenizer(access))
    if shipped is None and not os.path.isdir(path):
        raise _not_a_folder(name, path)
    return LocatedModel(name, shipped or path)


def locate_file(reference: str, *, revision: str | None = None, access: Access = ANYWHERE) -> Path:
    """Find one file: a path, or a file of a repository, "organisation/name:folder/file", fetched if need be.

    Args:
        revision: branch, tag or commit on the hub; None is its main branch.
        access: how the hub is asked.

    Raises:
        ModelNotFound: there is no such file, or it cannot be fetched.
    """
    path, named = Path(os.path.expanduser(reference)), _HUB_FILE.fullmatch(reference)
    if os.path.isfile(path):
        return path
    if named is None:
        raise ModelNotFound(
            f"there is no file {reference}",
            hint="name a file, or one on the hub: organisation/name:folder/file",
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    repo, file = named.groups()
    try:
        # As it is in the cache, where the hub cannot be asked.
        return Path(hf_hub_download(repo, file, revision=revision, **access.options))
    except LocalEntryNotFoundError as error:
        raise _hub_error(repo, revision, error) from error
    except EntryNotFoundError as error:
        raise ModelNotFound(f"{repo} on the hub has no file {file}") from error
    except (OSError, ValueError, TransportError) as error:
        raise _hub_error(repo, revision, error) from error


def locate_network(reference: str, *, variant: str | None = None) -> Path:
    """Find a network that is no model by itself, such as a ControlNet, fetching it from the hub if need be.

    Args:
        reference: a name of `SHIPPED_NETWORKS`, a folder, a file, "organisation/name" on the hub, or a file
            there as `locate_file` has it.
        variant: of a hub repository's weight files, such as "fp16"; None is the plain ones, or whichever
            there are.

    Raises:
        ModelNotFound: nothing of this name, or no access to it.
        PickleRefused, UnsupportedModel: the repository has no weights that can be used.
        InvalidCheckpoint: an index of shards is broken.
    """
    path = SHIPPED_NETWORKS.get(reference) or Path(os.path.expanduser(reference))
    if os.path.exists(path):
        return path
    if _HUB_FILE.fullmatch(reference):
        return _with_shards(reference)
    if not _HUB_ID.fullmatch(reference):
        raise ModelNotFound(
            f"there is no network {reference!r}: no folder, no file and no hub id",
            hint=f"{_similar(reference)}shipped: {', '.join(SHIPPED_NETWORKS)}",
        )
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    try:
        listing = HfApi().model_info(reference, timeout=_TIMEOUT)
    except (OSError, ValueError, TransportError) as error:
        cached = try_to_load_from_cache(reference, CONFIG)
        if isinstance(cached, str) and _is_network(Path(cached).parent, variant):
            return Path(cached).parent  # what was fetched once serves without the hub
        raise _hub_error(reference, None, error) from error
    files = [file.rfilename for file in listing.siblings or ()]
    weights = _network_weights(files, variant)
    if CONFIG not in files or weights is None:
        pickles = [name for name in files if name.endswith(PICKLE_SUFFIXES)]
        raise (PickleRefused if pickles else UnsupportedModel)(
            f"{reference} on the hub has no {CONFIG} with weights beside it: "
            f"{STEM}{f'.{variant}' if variant else ''}.safetensors, or an index of shards",
            hint=f"name one of its files: {reference}:FILE",
        )
    _with_shards(f"{reference}:{weights}")
    return locate_file(f"{reference}:{CONFIG}").parent


def _with_shards(reference: str) -> Path:
    """As `locate_file`, of a file on the hub; where that is an index, its shards are there too."""
    path = locate_file(reference)
    if path.suffix == ".json":
        for shard in sorted(read_index(path)):
            locate_file(reference.removesuffix(path.name) + shard)
    return path


def _network_weights(files: Collection[str], variant: str | None) -> str | None:
    """A network's weight file, or the index of its shards, among the files of its folder."""
    found = weight_variants(files, STEM)
    return found.get(variant) or (next(iter(found.values()), None) if variant is None else None)


def _is_network(folder: Path, variant: str | None) -> bool:
    """Whether a network's weights are there, every shard of them."""
    weights = _network_weights([file.name for file in folder.iterdir()], variant)
    if weights is None or not weights.endswith(".json"):
        return weights is not None
    return all((folder / shard).is_file() for shard in read_index(folder / weights))


def list_models() -> list[ModelInfo]:
    """The shipped model and every Stable Diffusion checkpoint in the hub's cache, read from headers alone."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    infos = [
        info
        for name, folder in SHIPPED.items()
        if folder.is_dir()
        for info in _describe(name, None, folder, "shipped")
    ]
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return infos
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda revision: -revision.last_modified):
            if repo.repo_type == "model" and (revision.snapshot_path / MODEL_INDEX).is_file():
                infos += _describe(repo.repo_id, revision.commit_hash, revision.snapshot_path, "hub cache")
    return infos


def _describe(name: str, revision: str | None, folder: Path, where: str) -> list[ModelInfo]:
    infos = []
    for variant in variants_of(folder) or (None,):
        family, parameters, size, problem = "", 0, 0, None
        try:
            checkpoint = read_checkpoint(folder, variant)
            family, parameters, size = checkpoint.family, checkpoint.parameters, checkpoint.size
        except LimnerError as error:
            problem = error.message
        infos.append(ModelInfo(name, revision, variant, folder, where, family, parameters, size, problem))
    return infos


def _from_hub(repo: str, revision: str | None, variant: str | None, access: Access) -> LocatedModel:
    # Imported here because it takes a while, and the shipped model and folders do without.
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Progress(tqdm):
        """The hub's progress bar, but only on a terminal."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{"disable": None, **kwargs})  # type: ignore[no-untyped-call]

    cached = _in_cache(repo, revision, access)
    if access.local_files_only:
        if cached is None:
            raise ModelNotFound(
                f"{repo} is not in the hub's cache, and local_files_only forbids asking the hub",
                hint="leave local_files_only out once to fetch it",
            )
        return LocatedModel(repo, cached)
    if cached and revision and _COMMIT.fullmatch(revision) and _is_complete(cached, variant):
        return LocatedModel(repo, cached)  # a commit never changes, so there is nothing to ask
    try:
        listing = HfApi(token=access.token).model_info(repo, revision=revision, timeout=_TIMEOUT)
    except (OSError, ValueError, TransportError) as error:  # ValueError: a bad id, or no JSON
        if cached is None:
            raise _hub_error(repo, revision, error) from error
        warning = f"{_hub_error(repo, revision, error).message}; its copy in the cache is used"
        return LocatedModel(repo, cached, () if isinstance(error, OfflineModeIsEnabled) else (warning,))
    files = [file.rfilename for file in listing.siblings or ()]
    if MODEL_INDEX not in files:
        raise _no_pipeline(repo, files)

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(repo, file, revision=revision, **access.options))

    try:
        index = read_model_index(fetch(MODEL_INDEX))  # before gigabytes are fetched in vain
        weights, _ = choose_weights(files, index.parts, variant, source=repo)
        wanted = {
            MODEL_INDEX,
            "scheduler/scheduler_config.json",
            *(f"{TOKENIZER_OF[part]}/{name}" for part in index.text_encoders for name in TOKENIZER_FILES),
        }
        for part, file in weights.items():
            wanted |= {f"{part}/config.json", file}
            if file.endswith(".json"):
                wanted |= {f"{part}/{shard}" for shard in read_index(fetch(file))}
        patterns = [glob.escape(file) for file in sorted(wanted)]
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, tqdm_class=Progress, **access.options
        )
    except HfHubHTTPError as error:
        raise _hub_error(repo, revision, error) from error
    except (OSError, TransportError) as error:
        raise ModelNotFound(
            f"the download of {repo} broke off: {error}",
            hint="try again: what is complete is not fetched again",
        ) from error
    return LocatedModel(repo, Path(folder))


def cached_clip_tokenizer(access: Access = ANYWHERE) -> Path | None:
    """The folder of CLIP's tokenizer files in the hub's cache, if they are there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(_TOKENIZER_REPO, "vocab.json", cache_dir=access.cache_dir)
    there = isinstance(found, str) and (Path(found).parent / "merges.txt").is_file()
    return Path(str(found)).parent if there else None


def clip_tokenizer(access: Access = ANYWHERE) -> Path:
    """As `cached_clip_tokenizer`, but fetched where they are not there.

    Raises:
        ModelNotFound: they cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    if (cached := cached_clip_tokenizer(access)) is not None:
        return cached
    try:
        files = list(TOKENIZER_FILES)
        return Path(snapshot_download(_TOKENIZER_REPO, allow_patterns=files, **access.options))
    except Exception as error:  # of many libraries underneath
        raise ModelNotFound(
            f"a single file holds no tokenizer, and CLIP's cannot be fetched: "
            f"{_hub_error(_TOKENIZER_REPO, None, error).message}",
            hint=f"fetch it once with `hf download {_TOKENIZER_REPO} vocab.json merges.txt`, or copy it",
        ) from error


def _in_cache(repo: str, revision: str | None, access: Access) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, MODEL_INDEX, cache_dir=access.cache_dir, revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _is_complete(folder: Path, variant: str | None) -> bool:
    try:
        return read_checkpoint(folder, variant).size > 0
    except LimnerError:
        return False


def _hub_error(repo: str, revision: str | None, error: Exception) -> ModelNotFound:
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return ModelNotFound(
                f"access to {repo} on the hub is restricted",
                hint=f"accept its terms at its page on the hub, then {_TOKEN_HINT}",
            )
        case RepositoryNotFoundError():
            return ModelNotFound(
                f"there is no folder {repo} here, and no model {repo} on the hub that you may see",
                hint=f"{_similar(repo)}if it is private, {_TOKEN_HINT}",
            )
        case RevisionNotFoundError():
            return ModelNotFound(f"{repo} on the hub has no revision {revision!r}")
        case OfflineModeIsEnabled():
            return ModelNotFound(
                f"{repo} is not in the hub's cache, and HF_HUB_OFFLINE forbids asking the hub",
                hint=f"{_similar(repo)}unset HF_HUB_OFFLINE once to fetch it",
            )
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return ModelNotFound(
        f"the hub cannot be asked for {repo}: {reason}",
        hint=f"{_similar(repo)}check the connection; a model that was fetched once is found without it",
    )


def _no_pipeline(repo: str, files: list[str]) -> LimnerError:
    pickles = sorted(file for file in files if file.endswith(PICKLE_SUFFIXES))
    single = sorted(file for file in files if file.endswith(".safetensors"))
    message = f"{repo} on the hub has no {MODEL_INDEX}, so it is no pipeline in the diffusers layout"
    if pickles and not single:
        return PickleRefused(f"{message}, and its weights are pickles ({pickles[0]})", hint=PICKLE_HINT)
    return UnsupportedModel(message, hint="look for a repository whose page says 'Diffusers'")


def _not_a_folder(name: str, path: Path) -> LimnerError:
    if path.suffix in PICKLE_SUFFIXES and os.path.exists(path):
        return PickleRefused(f"{name} is a pickle ({path.suffix})", hint=PICKLE_HINT)
    if os.path.exists(path):
        return UnsupportedModel(f"{name} is a file, expected a .safetensors file or a folder")
    return ModelNotFound(
        f"there is no model {name!r}: not shipped, no file or folder, no hub id such as organisation/name",
        hint=f"{_similar(name)}shipped: {', '.join(SHIPPED)}",
    )


def _similar(name: str) -> str:
    """A hint that ends with "; ", or nothing: shipped models, folders and checkpoints of nearly this name."""
    path = Path(os.path.expanduser(name))
    try:
        there = {
            other.name: str(other)
            for other in path.parent.iterdir()
            if other.is_dir() or other.suffix == ".safetensors"
        }
    except (OSError, ValueError):
        there = {}
    near = difflib.get_close_matches(path.name, [*there, *SHIPPED], n=3)
    return f"did you mean {' or '.join(there.get(other, other) for other in near)}? " if near else ""
