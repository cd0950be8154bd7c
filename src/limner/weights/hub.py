"""Finds models by name: the shipped model, a folder, a file, or a repository on the Hugging Face hub.

Only the needed files of a repository are fetched, never a pickle. When the hub cannot be reached, files in
its cache are used.
"""

import glob
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.catalogue.headers import read_index
from limner.catalogue.layout import MODEL_INDEX, TOKENIZER_OF
from limner.catalogue.pipelines import choose_weights, read_model_index
from limner.catalogue.shipped import SHIPPED
from limner.errors import InvalidRequest, LimnerError, ModelNotFound

from .checkpoint import check_tokenizers
from .folder import read_folder
from .hub_errors import hub_error, no_pipeline, not_a_model
from .single import read_single_file
from .tokenizers import TOKENIZER_FILES

_COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILE = re.compile(rf"({HUB_ID.pattern}):([\w.-]+(?:/[\w.-]+)*)")
_TOKENIZER_REPO = "openai/clip-vit-large-patch14"
HUB_TIMEOUT = 10.0  # seconds, for the hub to answer before the cache is used


@dataclass(frozen=True)
class Access:
    """How the hub is accessed.

    Attributes:
        cache_dir: Folder of fetched files; None is the hub's own cache.
        token: Token of an account; None is that of `hf auth login`, False is no token.
        local_files_only: Use only the cache, and do not access the hub.
    """

    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of huggingface_hub's functions that fetch files."""
        return {
            "cache_dir": self.cache_dir,
            "token": self.token,
            "local_files_only": self.local_files_only,
        }


ANYWHERE = Access()


@dataclass(frozen=True)
class LocatedModel:
    """A model on this machine.

    Attributes:
        name: The name that it was found by.
        folder: Its folder in the diffusers layout, or its single file; not read yet.
        tokenizer: Folder of CLIP's tokenizer, for a single file.
        warnings: Warnings for the caller, such as that the hub could not be reached.
    """

    name: str
    folder: Path
    warnings: tuple[str, ...] = ()
    tokenizer: Path | None = None


def locate_model(
    reference: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    replaced: Collection[str] = (),
    access: Access = ANYWHERE,
) -> LocatedModel:
    """Find a model's folder or file, fetching it from the hub if need be.

    Args:
        reference: "picturebook" (the model that ships with Limner), a folder, a single file
            (.safetensors), or "organisation/name" on the hub. Local files are preferred to the hub.
        revision: Branch, tag or commit on the hub; None is its main branch.
        variant: Variant of the weight files to fetch from the hub, such as "fp16".
        replaced: Parts that come from elsewhere, which the model need not have.
        access: How the hub is accessed.

    Raises:
        ModelNotFound: There is no model of this name, revision or variant, or no access to it.
        InvalidRequest: A revision of a model that is not on the hub.
        PickleRefused, UnsupportedModel, InvalidCheckpoint: The model cannot be used; for a repository on the
            hub this is checked before its weights are fetched.
    """
    name = str(reference)
    path = Path(os.path.expanduser(reference))
    shipped = SHIPPED.get(name) if isinstance(reference, str) else None
    there = os.path.exists(path)  # unlike Path.exists, false for what cannot be a path
    if shipped is None and not there and isinstance(reference, str) and HUB_ID.fullmatch(reference):
        return _from_hub(reference, revision, variant, replaced, access)
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
        held = read_single_file(path, replaced=replaced).text_configs  # before a tokenizer is fetched
        wanted = {TOKENIZER_OF[part] for part in TOKENIZER_OF if part in held or part in replaced}
        needed = not wanted or wanted - set(replaced)
        return LocatedModel(name, path, tokenizer=clip_tokenizer(access) if needed else None)
    if shipped is None and not os.path.isdir(path):
        raise not_a_model(name, path)
    return LocatedModel(name, shipped or path)


def locate_file(reference: str, *, revision: str | None = None, access: Access = ANYWHERE) -> Path:
    """Find one file: a path, or a file of a repository, "organisation/name:folder/file", fetched if need be.

    Args:
        revision: Branch, tag or commit on the hub; None is its main branch.
        access: How the hub is accessed.

    Raises:
        ModelNotFound: There is no such file, or it cannot be fetched.
    """
    path, named = Path(os.path.expanduser(reference)), HUB_FILE.fullmatch(reference)
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
        # If the hub cannot be reached, this returns the file in the cache.
        return Path(hf_hub_download(repo, file, revision=revision, **access.options))
    except LocalEntryNotFoundError as error:
        raise hub_error(repo, revision, error) from error
    except EntryNotFoundError as error:
        raise ModelNotFound(f"{repo} on the hub has no file {file}") from error
    except (OSError, ValueError, TransportError) as error:
        raise hub_error(repo, revision, error) from error


def _from_hub(
    repo: str, revision: str | None, variant: str | None, replaced: Collection[str], access: Access
) -> LocatedModel:
    # Imported here because it takes a while, and the shipped model and folders do not need it.
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
    if cached and revision and _COMMIT.fullmatch(revision) and _is_complete(cached, variant, replaced):
        return LocatedModel(repo, cached)  # a commit never changes, so there is nothing to ask
    try:
        listing = HfApi(token=access.token).model_info(repo, revision=revision, timeout=HUB_TIMEOUT)
    except (OSError, ValueError, TransportError) as error:  # ValueError: a bad id, or no JSON
        if cached is None:
            raise hub_error(repo, revision, error) from error
        warning = f"{hub_error(repo, revision, error).message}; its copy in the cache is used"
        return LocatedModel(repo, cached, () if isinstance(error, OfflineModeIsEnabled) else (warning,))
    files = [file.rfilename for file in listing.siblings or ()]
    if MODEL_INDEX not in files:
        raise no_pipeline(repo, files)

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(repo, file, revision=revision, **access.options))

    try:
        index = read_model_index(fetch(MODEL_INDEX), replaced)  # before gigabytes are fetched
        weights, _ = choose_weights(files, index.parts, variant, source=repo)
        wanted = {
            MODEL_INDEX,
            "scheduler/scheduler_config.json",
            *(f"{tokenizer}/{name}" for tokenizer in index.tokenizers for name in TOKENIZER_FILES),
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
        raise hub_error(repo, revision, error) from error
    except (OSError, TransportError) as error:
        raise ModelNotFound(
            f"the download of {repo} was interrupted: {error}",
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
    """The folder of CLIP's tokenizer files, fetched from the hub if need be.

    Raises:
        ModelNotFound: They cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    if (cached := cached_clip_tokenizer(access)) is not None:
        return cached
    try:
        files = list(TOKENIZER_FILES)
        return Path(snapshot_download(_TOKENIZER_REPO, allow_patterns=files, **access.options))
    except Exception as error:  # of several libraries
        raise ModelNotFound(
            f"a single file holds no tokenizer, and CLIP's cannot be fetched: "
            f"{hub_error(_TOKENIZER_REPO, None, error).message}",
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


def _is_complete(folder: Path, variant: str | None, replaced: Collection[str]) -> bool:
    try:
        checkpoint = read_folder(folder, variant, replaced)
        check_tokenizers(checkpoint)
        return checkpoint.size > 0
    except LimnerError:
        return False
