"""Finds parts of models and single networks, here or on the hub: a VAE, a text encoder, a ControlNet."""

import os
from collections.abc import Collection
from pathlib import Path

from limner.catalogue.headers import PICKLE_HINT, read_index
from limner.catalogue.layout import (
    CONFIG,
    MODEL_INDEX,
    PICKLE_SUFFIXES,
    STEM,
    TOKENIZER_OF,
    WEIGHT_STEMS,
    weight_variants,
)
from limner.catalogue.shipped import SHIPPED, SHIPPED_NETWORKS
from limner.errors import ModelNotFound, PickleRefused, UnsupportedModel

from .hub import ANYWHERE, HUB_FILE, HUB_ID, HUB_TIMEOUT, Access, locate_file
from .hub_errors import hub_error, similar_names
from .tokenizers import TOKENIZER_FILES


def locate_part(
    name: str, reference: str | Path, *, variant: str | None = None, access: Access = ANYWHERE
) -> Path:
    """Find a part of a model, for `read_checkpoint`, fetching it from the hub if need be.

    Args:
        name: "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2" or "scheduler".
        reference: A name of `SHIPPED`, a path, "organisation/name" on the hub, which is a model that has the
            part or the part alone, or a folder or file there, "organisation/name:FOLDER-OR-FILE".
        variant: Variant of weight files to prefer, such as "fp16".
        access: How the hub is accessed.

    Raises:
        ModelNotFound: There is nothing of this name, or no access to it.
        PickleRefused: The only weights are pickles.
    """
    path = Path(os.path.expanduser(reference))
    if isinstance(reference, str) and reference in SHIPPED:
        return SHIPPED[reference]
    if os.path.exists(path):
        return path
    repo, _, within = str(reference).partition(":")
    if not (HUB_ID.fullmatch(str(reference)) or HUB_FILE.fullmatch(str(reference))):
        raise ModelNotFound(
            f"there is no {name} {str(reference)!r}: no file, no folder and no hub id",
            hint="name a path, organisation/name, or organisation/name:FOLDER",
        )
    files = _files_on_hub(repo, access)
    if within in files:
        folder, wanted = within.rpartition("/")[0], [within.rpartition("/")[2]]
        wanted += [CONFIG] if name in WEIGHT_STEMS and f"{folder}/{CONFIG}".lstrip("/") in files else []
    else:
        folder, wanted = _part_on_hub(name, repo, within, files, variant)
    prefix = f"{repo}:{folder}/" if folder else f"{repo}:"
    fetched = [locate_file(prefix + file, access=access) for file in wanted]
    if fetched[0].name.endswith(".safetensors.index.json"):
        for shard in sorted(read_index(fetched[0])):
            locate_file(prefix + shard, access=access)
    return fetched[0] if name in WEIGHT_STEMS or name == "scheduler" else fetched[0].parent


def _part_on_hub(
    name: str, repo: str, within: str, files: Collection[str], variant: str | None
) -> tuple[str, list[str]]:
    """The folder of a part in a repository, and the files to fetch from it, the weights first."""
    root = f"{within}/" if within else ""
    is_model = f"{root}{MODEL_INDEX}" in files or any(file.startswith(f"{root}{name}/") for file in files)
    folder = f"{root}{name}" if is_model else within
    start = f"{folder}/" if folder else ""
    inside = [file.removeprefix(start) for file in files if file.startswith(start)]
    place = f"{repo}:{folder}" if folder else repo
    if name in WEIGHT_STEMS:
        found = weight_variants(inside, WEIGHT_STEMS[name])
        weights = found.get(variant) or found.get(None) or next(iter(found.values()), None)
        if weights is not None and CONFIG in inside:
            return folder, [weights, CONFIG]
        if weights is None and (pickles := [file for file in inside if file.endswith(PICKLE_SUFFIXES)]):
            raise PickleRefused(
                f"{place} on the hub has its {name} only as a pickle ({pickles[0]})", hint=PICKLE_HINT
            )
    elif name == "scheduler" and "scheduler_config.json" in inside:
        return folder, ["scheduler_config.json"]
    elif name in TOKENIZER_OF.values() and (wanted := [file for file in TOKENIZER_FILES if file in inside]):
        return folder, wanted
    raise ModelNotFound(
        f"{place} on the hub has no {name}", hint=f"name the folder or file that has it: {repo}:FOLDER"
    )


def _files_on_hub(repo: str, access: Access) -> list[str]:
    """The files of a repository on the hub, or if that cannot be reached, those in the cache."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    asked: Exception | None = None
    if not access.local_files_only:
        try:
            listing = HfApi(token=access.token).model_info(repo, timeout=HUB_TIMEOUT)
            return [file.rfilename for file in listing.siblings or ()]
        except (OSError, ValueError, TransportError) as error:
            asked = error
    try:
        cached = Path(snapshot_download(repo, cache_dir=access.cache_dir, local_files_only=True))
    except (OSError, ValueError) as error:
        raise hub_error(repo, None, asked or error) from error
    return [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()]


def locate_network(reference: str, *, variant: str | None = None) -> Path:
    """Find a single network, such as a ControlNet, fetching it from the hub if need be.

    Args:
        reference: A name of `SHIPPED_NETWORKS`, a folder, a file, "organisation/name" on the hub, or a file
            there, as for `locate_file`.
        variant: Variant of the weight files on the hub, such as "fp16"; None is the plain files, or else any.

    Raises:
        ModelNotFound: There is nothing of this name, or no access to it.
        PickleRefused, UnsupportedModel: The repository has no weights that can be used.
        InvalidCheckpoint: An index of shards is broken.
    """
    path = SHIPPED_NETWORKS.get(reference) or Path(os.path.expanduser(reference))
    if os.path.exists(path):
        return path
    if HUB_FILE.fullmatch(reference):
        return _with_shards(reference)
    if not HUB_ID.fullmatch(reference):
        raise ModelNotFound(
            f"there is no network {reference!r}: no folder, no file and no hub id",
            hint=f"{similar_names(reference)}shipped: {', '.join(SHIPPED_NETWORKS)}",
        )
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    try:
        listing = HfApi().model_info(reference, timeout=HUB_TIMEOUT)
    except (OSError, ValueError, TransportError) as error:
        cached = try_to_load_from_cache(reference, CONFIG)
        if isinstance(cached, str) and _is_network(Path(cached).parent, variant):
            return Path(cached).parent  # fetched before
        raise hub_error(reference, None, error) from error
    files = [file.rfilename for file in listing.siblings or ()]
    weights = _network_weights(files, variant)
    if CONFIG not in files or weights is None:
        pickles = [name for name in files if name.endswith(PICKLE_SUFFIXES)]
        raise (PickleRefused if pickles else UnsupportedModel)(
            f"{reference} on the hub has no {CONFIG} next to weights: "
            f"{STEM}{f'.{variant}' if variant else ''}.safetensors, or an index of shards",
            hint=f"name one of its files: {reference}:FILE",
        )
    _with_shards(f"{reference}:{weights}")
    return locate_file(f"{reference}:{CONFIG}").parent


def _with_shards(reference: str) -> Path:
    """As `locate_file` for a file on the hub; the shards of an index are fetched, too."""
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
    """Whether a folder has a network's weights, with all shards."""
    weights = _network_weights([file.name for file in folder.iterdir()], variant)
    if weights is None or not weights.endswith(".json"):
        return weights is not None
    return all((folder / shard).is_file() for shard in read_index(folder / weights))
