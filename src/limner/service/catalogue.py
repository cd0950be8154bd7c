"""The catalogue of the service: what the operator has put on this machine, and nothing else."""

from pathlib import Path

from limner.catalogue.catalogue import Catalogue
from limner.catalogue.contents import KINDS, Kind
from limner.catalogue.shipped import SHIPPED, SHIPPED_NETWORKS
from limner.settings.serve import ServeSettings


def catalogue_of(settings: ServeSettings) -> Catalogue:
    """The catalogue of the settings' folders, of what `limner models pull` has fetched, of what ships with
    Limner, and of the hub's cache."""
    from huggingface_hub import constants

    return Catalogue(
        {kind: folders_of(settings, kind) for kind in KINDS},
        cache=settings.cache_dir,
        shipped=SHIPPED | SHIPPED_NETWORKS,
        hub_cache=Path(constants.HF_HUB_CACHE),
    )


def folders_of(settings: ServeSettings, kind: Kind) -> tuple[Path, ...]:
    """The folders of files of a kind."""
    given: dict[Kind, tuple[Path, ...]] = {
        "checkpoint": settings.model_dirs,
        "lora": settings.lora_dirs,
        "embedding": settings.embedding_dirs,
        "controlnet": settings.control_dirs,
        "ip_adapter": settings.image_prompt_dirs,
    }
    return (*given.get(kind, ()), settings.pulled_models / kind)
