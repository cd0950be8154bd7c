"""Names and lists of AUTOMATIC1111's API: samplers, schedulers, upscalers, and the many names of a model."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from limner.catalogue.catalogue import Entry
from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.schedule import SIGMA_SCHEDULES
from limner.errors import InvalidRequest
from limner.files import StampCache
from limner.images.a1111_write import TIMESTEP_SAMPLERS
from limner.request.names import UPSCALERS, own_sampler, own_sigma_schedule, own_upscaler

from .errors import Refusal

AUTOMATIC = "automatic"

# AUTOMATIC1111's names besides the label, and what it says of a sampler beyond the schedule.
_ALIASES: dict[str, tuple[str, ...]] = {
    "dpmpp_2m": ("k_dpmpp_2m",),
    "dpmpp_sde": ("k_dpmpp_sde",),
    "dpmpp_2m_sde": ("k_dpmpp_2m_sde",),
    "dpmpp_2m_sde_heun": ("k_dpmpp_2m_sde_heun",),
    "dpmpp_2s_a": ("k_dpmpp_2s_a",),
    "dpmpp_3m_sde": ("k_dpmpp_3m_sde",),
    "euler_a": ("k_euler_a", "k_euler_ancestral"),
    "euler": ("k_euler",),
    "lms": ("k_lms",),
    "heun": ("k_heun",),
    "dpm2": ("k_dpm_2",),
    "dpm2_a": ("k_dpm_2_a",),
    "dpm_fast": ("k_dpm_fast",),
    "dpm_adaptive": ("k_dpm_ad",),
    "restart": ("restart",),
    "ddim": ("ddim",),
    "ddim_cfg_pp": ("ddim_cfgpp",),
    "pndm": ("plms",),
    "unipc_bh1": ("unipc",),
    "lcm": ("k_lcm",),
}
_USES_ENSD = ("dpmpp_2s_a", "euler_a", "dpm2_a", "dpm_fast", "dpm_adaptive")
_SECOND_ORDER = ("dpmpp_sde", "dpmpp_2s_a", "heun", "dpm2", "dpm2_a", "restart")
_DISCARDS = ("dpmpp_3m_sde", "dpm2", "dpm2_a")
_BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
_BY_ALIAS = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
_UNLISTED = {"unipc"}  # its label is that of another sampler in lower case

# Default of rho, and whether AUTOMATIC1111's function takes the model.
_RHO = {"karras": 7.0, "polyexponential": 1.0}
_INNER = {"uniform", "sgm_uniform", "simple", "normal", "ddim_uniform", "beta"}
_SCHEDULER_NAMES = {"ddim_uniform": "ddim"}
_SCHEDULER_ALIASES = {"sgm_uniform": ["SGMUniform"]}

PIXEL_UPSCALERS = ("None", "Lanczos", "Nearest")
_LANCZOS_TOO = {"none", "lanczos"}  # AUTOMATIC1111's "None" resizes by Lanczos
_HASH_IN_TITLE = re.compile(r"\s*\[([0-9a-f]{6,64})\]$", re.IGNORECASE)
_OLD_HASH_AT, _OLD_HASH_BYTES = 0x100000, 0x10000


def samplers() -> list[dict[str, Any]]:
    """The samplers, AUTOMATIC1111's first and in its order."""
    order = [*_ALIASES, *(name for name in SAMPLER_TABLE if name not in _ALIASES)]
    return [
        {
            "name": SAMPLER_TABLE[name].label,
            "aliases": list(_ALIASES.get(name, (name,))),
            "options": _sampler_options(name),
        }
        for name in order
        if name not in _UNLISTED
    ]


def _sampler_options(name: str) -> dict[str, str]:
    automatic = SAMPLER_TABLE[name].automatic
    options = {} if automatic == "uniform" else {"scheduler": automatic}
    for key, names in (
        ("uses_ensd", _USES_ENSD),
        ("discard_next_to_last_sigma", _DISCARDS),
        ("second_order", _SECOND_ORDER),
        ("brownian_noise", _BROWNIAN),
    ):
        if name in names:
            options[key] = "True"
    return {**options, "solver_type": "heun"} if name == "dpmpp_2m_sde_heun" else options


def schedulers() -> list[dict[str, Any]]:
    """The sigma schedules, Automatic first."""
    first = {
        "name": AUTOMATIC,
        "label": "Automatic",
        "aliases": None,
        "default_rho": -1,
        "need_inner_model": False,
    }
    return [
        first,
        *(
            {
                "name": _SCHEDULER_NAMES.get(name, name),
                "label": info.label,
                "aliases": _SCHEDULER_ALIASES.get(name),
                "default_rho": _RHO.get(name, -1),
                "need_inner_model": name in _INNER,
            }
            for name, info in SIGMA_SCHEDULES.items()
        ),
    ]


def upscalers() -> list[dict[str, Any]]:
    """The upscalers of pixels."""
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
        for name in PIXEL_UPSCALERS
    ]


def latent_upscale_modes() -> list[dict[str, str]]:
    """The upscalers of latents, for the hires pass."""
    return [{"name": label} for name, label in UPSCALERS.items() if name.startswith("latent")]


def sampling(
    sampler: str, scheduler: str | None, field: str = "sampler_name", scheduler_field: str = "scheduler"
) -> tuple[str, str, bool]:
    """Limner's sampler and sigma schedule, and whether a scheduler was given that the sampler has no use for.

    A scheduler at the end of the sampler's name goes before the one given; null, "" and Automatic mean the
    sampler's own. Samplers that visit timesteps (DDIM, PLMS, UniPC) have no use for one.

    Raises:
        Refusal: An unknown name.
    """
    word = (scheduler or "").strip()
    given = own_schedule(word, scheduler_field) if word.lower() not in ("", AUTOMATIC) else None
    try:
        own, ending = own_sampler(_BY_ALIAS.get(sampler.strip().lower(), sampler), field)
    except InvalidRequest as error:
        raise Refusal(f"Sampler not found: {error.message}", hint=error.hint, fields=(field,)) from None
    automatic = SAMPLER_TABLE[own].automatic
    schedule = ending or given
    if own in TIMESTEP_SAMPLERS:
        return own, automatic, schedule not in (None, automatic)
    return own, schedule or automatic, False


def own_schedule(name: str, field: str = "scheduler") -> str:
    """Limner's name of a scheduler. Raises Refusal where there is none."""
    try:
        return own_sigma_schedule(name, field)
    except InvalidRequest as error:
        raise Refusal(f"Scheduler not found: {error.message}", hint=error.hint, fields=(field,)) from None


def upscaler(name: str | None, field: str = "hr_upscaler") -> str:
    """Limner's name of an upscaler for the hires pass. Raises Refusal where there is none."""
    if name is None or not name.strip():
        return "latent"
    if name.strip().lower() in _LANCZOS_TOO:
        return "lanczos"
    try:
        return own_upscaler(name)
    except InvalidRequest:
        known = ", ".join([*UPSCALERS.values(), "None"])
        raise Refusal(f"{field} is {name[:80]!r}; expected one of {known}", fields=(field,)) from None


def file_name(entry: Entry) -> str:
    """Name of an entry's file within its folder; that of the folder where it is one."""
    suffix = entry.path.suffix if entry.path.suffix.lower() in _WEIGHT_SUFFIXES else ""
    name = entry.name + ("" if entry.name.endswith(suffix) else suffix)
    return f"{name}@{entry.variant}" if entry.variant else name


_WEIGHT_SUFFIXES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}


def title(entry: Entry) -> str:
    """What AUTOMATIC1111 calls the title of a model: "file.safetensors [6ce0161689]"."""
    return file_name(entry) + (f" [{entry.short_hash}]" if entry.short_hash else "")


def stem(entry: Entry) -> str:
    """What AUTOMATIC1111 calls the name of a model: the file's name without its suffix."""
    name = file_name(entry)
    for suffix in _WEIGHT_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


class Models:
    """The models that requests may name.

    Args:
        entries: Checkpoints of the catalogue.
        aliases: Further names -> names of models.
    """

    def __init__(self, entries: Iterable[Entry], aliases: Mapping[str, str] | None = None) -> None:
        self.entries: tuple[Entry, ...] = tuple(entry for entry in entries if entry.problem is None)
        self._aliases = {name.lower(): model for name, model in (aliases or {}).items()}
        self._by_name: dict[str, Entry] = {}
        for names in zip(*(_names(entry) for entry in self.entries), strict=True):
            for name, entry in zip(names, self.entries, strict=True):
                if name:
                    self._by_name.setdefault(name.lower(), entry)

    def titles(self) -> list[str]:
        """The titles of all models."""
        return [title(entry) for entry in self.entries]

    def listed(self) -> list[dict[str, Any]]:
        """The models as `/sdapi/v1/sd-models` lists them."""
        return [
            {
                "title": title(entry),
                "model_name": stem(entry),
                "hash": entry.short_hash,
                "sha256": entry.sha256,
                "filename": file_name(entry),
                "config": None,
            }
            for entry in self.entries
        ]

    def find(self, name: str, field: str) -> Entry:
        """The model that any of its names means, in any case: title, name, file, stem, id, hash.

        Args:
            field: Name of the request's field, for errors.

        Raises:
            Refusal: There is none.
        """
        wanted = name.strip().lower()
        for _ in range(2):
            if (found := self._by_name.get(wanted)) is not None:
                return found
            match = _HASH_IN_TITLE.search(wanted)
            plain = _HASH_IN_TITLE.sub("", wanted)
            if match is not None:
                found = self._by_hash(match[1]) or self._by_name.get(plain)
            elif re.fullmatch(r"[0-9a-f]{8,64}", wanted):
                found = self._by_hash(wanted)
            if found is not None:
                return found
            if wanted not in self._aliases:
                break
            wanted = self._aliases[wanted].lower()
        titles = self.titles()
        near = get_close_matches(name, titles, 3) or titles[:20]
        raise Refusal(
            f"{field} is {name[:120]!r}, and there is no such model",
            hint=f"there {'is' if len(near) == 1 else 'are'} {', '.join(near)}" if near else None,
            fields=(field,),
        )

    def _by_hash(self, digits: str) -> Entry | None:
        for entry in self.entries:
            if entry.sha256 and entry.sha256.startswith(digits):
                return entry
        if len(digits) == 8:
            for entry in self.entries:
                if entry.path.is_file() and old_hash(entry.path) == digits:
                    return entry
        return None


def _names(entry: Entry) -> Sequence[str | None]:
    """All names of a model, those that are surest first."""
    return (
        entry.id,
        title(entry),
        file_name(entry),
        stem(entry),
        entry.name,
        f"{stem(entry)} [{entry.short_hash}]" if entry.short_hash else None,
        file_name(entry).rpartition("/")[2],
        stem(entry).rpartition("/")[2],
        entry.sha256,
        entry.short_hash,
    )


def _read_old_hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(_OLD_HASH_AT)
        return hashlib.sha256(file.read(_OLD_HASH_BYTES)).hexdigest()[:8]


_OLD_HASHES = StampCache(_read_old_hash, 10_000)


def old_hash(path: Path) -> str | None:
    """The eight digits by which AUTOMATIC1111 knew a model in 2022; None for a file that cannot be read."""
    try:
        return _OLD_HASHES.get(path)
    except OSError:
        return None


def network_title(entry: Entry) -> str:
    """What ControlNet calls a network: "control_v11p_sd15_canny [d14c016b]"."""
    return stem(entry) + (f" [{entry.sha256[:8]}]" if entry.sha256 else "")


def find_network(name: str, entries: Sequence[Entry]) -> Entry | None:
    """The network that a title, a name or a file means, in any case; None if there is none."""
    wanted = _HASH_IN_TITLE.sub("", name.strip().lower())
    for form in (network_title, stem, file_name, _last_part):
        for entry in entries:
            own = form(entry).lower()
            if own in (name.strip().lower(), wanted):
                return entry
    return None


def _last_part(entry: Entry) -> str:
    return stem(entry).rpartition("/")[2]
