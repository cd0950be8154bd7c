"""Names of samplers, sigma schedules and upscalers in Limner, diffusers, AUTOMATIC1111's webui and ComfyUI.

Case, blanks and punctuation do not matter, with one exception: "UniPC" (webui) and "uni_pc" (ComfyUI) are not
`unipc`, which is diffusers'. A sampler's name may end with that of a sigma schedule, as in older versions of
webui: "DPM++ 2M Karras", "k_dpmpp_2m_ka".
"""

import difflib
import re
from collections.abc import Mapping

from limner.diffusion.config import SAMPLER_CLASSES
from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.schedule import SIGMA_SCHEDULES
from limner.errors import InvalidRequest

UPSCALERS = {
    "latent": "Latent",
    "latent_antialiased": "Latent (antialiased)",
    "latent_bicubic": "Latent (bicubic)",
    "latent_bicubic_antialiased": "Latent (bicubic antialiased)",
    "latent_nearest": "Latent (nearest)",
    "latent_nearest_exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest": "Nearest",
}
"""By Limner's name of an upscaler: webui's."""


def own_names(
    sampler: str | None = None, sigma_schedule: str | None = None, *, prefix: str = ""
) -> dict[str, str]:
    """Limner's names of a sampler and a sigma schedule, under "sampler" and "sigma_schedule".

    Args:
        prefix: Of the two fields' names in errors.

    Raises:
        InvalidRequest: An unknown name, or a sampler's name that ends with another sigma schedule than given.
    """
    schedule_field = f"{prefix}sigma_schedule"
    names = {}
    if sigma_schedule is not None:
        names["sigma_schedule"] = own_sigma_schedule(sigma_schedule, schedule_field)
    if sampler is None:
        return names
    own, schedule = own_sampler(sampler, f"{prefix}sampler")
    if schedule is not None and names.setdefault("sigma_schedule", schedule) != schedule:
        raise InvalidRequest(
            f"{prefix}sampler is {sampler!r}, which is {own} with sigma_schedule {schedule}, but "
            f"{schedule_field} is {sigma_schedule!r}",
            hint=f"give the sampler as {own}, or leave {schedule_field} out",
        )
    return {"sampler": own, **names}


def own_sampler(name: str, field: str = "sampler") -> tuple[str, str | None]:
    """Limner's names of a sampler and of the sigma schedule at the end of its name, if there is one.

    Args:
        field: Field that holds the name, for errors.

    Raises:
        InvalidRequest: An unknown name.
    """
    folded = _folded(_UNIPC.sub("unipc_bh1", name.strip()))
    if folded in _SAMPLER_OF:
        return _SAMPLER_OF[folded], None
    for ending, schedule in _SCHEDULE_OF.items():
        if folded.endswith(ending) and folded.removesuffix(ending) in _SAMPLER_OF:
            return _SAMPLER_OF[folded.removesuffix(ending)], schedule
    raise _unknown(field, name, _SAMPLER_OF)


def own_sigma_schedule(name: str, field: str = "sigma_schedule") -> str:
    """Limner's name of a sigma schedule.

    Arguments and errors as `own_sampler`.
    """
    if (folded := _folded(name)) not in _SCHEDULE_OF:
        raise _unknown(field, name, _SCHEDULE_OF)
    return _SCHEDULE_OF[folded]


def own_upscaler(name: str) -> str:
    """Limner's name of an upscaler for the hires pass. Raises as `own_sampler`."""
    if (folded := _folded(name)) not in _UPSCALER_OF:
        raise _unknown("hires_upscaler", name, _UPSCALER_OF)
    return _UPSCALER_OF[folded]


def nearest_name(field: str, name: str) -> str | None:
    """Limner's name that is the most like one that it does not know; None where none is.

    Args:
        field: "sampler", "sigma_schedule" or "hires_upscaler", the first two also with "hires_" before them.
    """
    known = {"sampler": _SAMPLER_OF, "sigma_schedule": _SCHEDULE_OF, "upscaler": _UPSCALER_OF}[
        field.removeprefix("hires_")
    ]
    return next(iter(_near(name, known)), None)


def _folded(name: str) -> str:
    """A name without what spellings differ in: one for "DPM++ 2M", "k_dpmpp_2m" and "dpmpp_2m_gpu"."""
    core = re.sub(r"^k_|_gpu$|scheduler$", "", name.strip().lower())
    return re.sub(r"[^a-z0-9]", "", core.replace("++", "pp"))


def _near(name: str, known: Mapping[str, str]) -> dict[str, None]:
    """The names that are like one, the nearest first."""
    return dict.fromkeys(known[match] for match in difflib.get_close_matches(_folded(name)[:60], known))


def _unknown(field: str, name: str, known: Mapping[str, str]) -> InvalidRequest:
    """The error for an unknown name."""
    near = _near(name, known)
    shown = repr(name if len(name) <= 60 else f"{name[:57]}…")
    every = ", ".join(dict.fromkeys(known.values()))
    hint = f"did you mean {' or '.join(near)}?" if near else "name one of these"
    return InvalidRequest(f"{field} is {shown}; expected one of {every}", hint=hint)


# webui's and ComfyUI's own spelling of one UniPC, where "unipc" is Limner's and diffusers' name for another.
_UNIPC = re.compile(r"^(?:UniPC(?! ?bh)(?=\s|$)|uni_pc(?!_bh))")
_SAMPLER_OF = {
    **{
        _folded(_UNIPC.sub("unipc_bh1", name)): own
        for own, info in SAMPLER_TABLE.items()
        for name in (own, info.label, *info.aliases)
    },
    **{_folded(name): own for name, own in SAMPLER_CLASSES.items()},
}
_SCHEDULE_OF = {
    _folded(name): own for own, info in SIGMA_SCHEDULES.items() for name in (own, info.label, *info.aliases)
}
_UPSCALER_OF = {_folded(name): own for own, webui in UPSCALERS.items() for name in (own, webui)}
