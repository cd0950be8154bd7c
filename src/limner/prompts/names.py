"""Everyone's names for samplers and sigma schedules: Limner's, diffusers', AUTOMATIC1111's and ComfyUI's.

Case, blanks and signs do not matter, but for one: "UniPC" is webui's and "uni_pc" ComfyUI's name for what is
not `unipc`, diffusers'. A sampler's name may have a sigma schedule's at its end, as the names of older
versions of AUTOMATIC1111's webui have it: "DPM++ 2M Karras", "k_dpmpp_2m_ka".
"""

import difflib
import re
from collections.abc import Mapping

from limner.errors import InvalidRequest

SAMPLERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "ddim": ("DDIM", "uniform", ("DDIMScheduler",)),
    "ddpm": ("DDPM", "uniform", ("DDPMScheduler",)),
    "euler": ("Euler", "uniform", ("EulerDiscreteScheduler",)),
    "euler_a": ("Euler a", "uniform", ("euler_ancestral", "EulerAncestralDiscreteScheduler")),
    "heun": ("Heun", "uniform", ("HeunDiscreteScheduler",)),
    "heunpp2": ("HeunPP2", "uniform", ()),
    "restart": ("Restart", "karras", ()),
    "dpm2": ("DPM2", "karras", ("KDPM2DiscreteScheduler",)),
    "dpm2_a": ("DPM2 a", "karras", ("dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler")),
    "lms": ("LMS", "uniform", ("LMSDiscreteScheduler",)),
    "deis": ("DEIS", "uniform", ("DEISMultistepScheduler",)),
    "pndm": ("PLMS", "uniform", ("PNDMScheduler",)),
    "ipndm": ("IPNDM", "uniform", ()),
    "dpmpp_2m": ("DPM++ 2M", "karras", ("DPMSolverMultistepScheduler",)),
    "dpmpp_2m_sde": ("DPM++ 2M SDE", "exponential", ()),
    "dpmpp_2m_sde_heun": ("DPM++ 2M SDE Heun", "exponential", ()),
    "dpmpp_3m_sde": ("DPM++ 3M SDE", "exponential", ()),
    "dpmpp_2s": ("DPM++ 2S", "uniform", ("DPMSolverSinglestepScheduler",)),
    "dpmpp_2s_a": ("DPM++ 2S a", "karras", ("dpmpp_2s_ancestral",)),
    "dpmpp_sde": ("DPM++ SDE", "karras", ("DPMSolverSDEScheduler",)),
    "dpm_fast": ("DPM fast", "uniform", ()),
    "dpm_adaptive": ("DPM adaptive", "uniform", ("dpm_ad",)),
    "unipc": ("unipc", "uniform", ("UniPCMultistepScheduler",)),
    "unipc_bh1": ("UniPC", "uniform", ("uni_pc", "uni_pc_bh1")),
    "unipc_bh2": ("UniPC bh2", "uniform", ("uni_pc_bh2",)),
    "res_multistep": ("Res Multistep", "uniform", ()),
    "gradient_estimation": ("Gradient Estimation", "uniform", ()),
    "er_sde": ("ER SDE", "uniform", ()),
    "seeds_2": ("SEEDS 2", "uniform", ()),
    "seeds_3": ("SEEDS 3", "uniform", ()),
    "sa_solver": ("SA Solver", "uniform", ("SASolverScheduler",)),
    "lcm": ("LCM", "uniform", ("LCMScheduler",)),
    "tcd": ("TCD", "uniform", ("TCDScheduler",)),
    "ddim_cfg_pp": ("DDIM CFG++", "uniform", ()),
    "euler_cfg_pp": ("Euler CFG++", "uniform", ()),
    "euler_a_cfg_pp": ("Euler a CFG++", "uniform", ("euler_ancestral_cfg_pp",)),
    "dpmpp_2m_cfg_pp": ("DPM++ 2M CFG++", "karras", ()),
    "dpmpp_2s_a_cfg_pp": ("DPM++ 2S a CFG++", "karras", ("dpmpp_2s_ancestral_cfg_pp",)),
}
"""Limner's names: webui's, the sigma schedule that "Automatic" stands for there, and others.

Some are not in webui but in its fork Forge: DDPM, DEIS, HeunPP2, IPNDM, TCD. Some are in neither, and named
after their like: DPM++ 2S, unipc, UniPC bh2, Res Multistep to SA Solver, and those of CFG++ but for DDIM's.
"""

SIGMA_SCHEDULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "uniform": ("Uniform", ()),
    "karras": ("Karras", ("ka",)),
    "exponential": ("Exponential", ()),
    "polyexponential": ("Polyexponential", ()),
    "beta": ("Beta", ()),
    "kl_optimal": ("KL Optimal", ()),
    "normal": ("Normal", ()),
    "simple": ("Simple", ()),
    "sgm_uniform": ("SGM Uniform", ()),
    "ddim_uniform": ("DDIM", ()),
    "align_your_steps": ("Align Your Steps", ("ays",)),
}
"""Limner's names: webui's, and others."""

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
"""Limner's names for what enlarges a picture between two passes: webui's."""


def own_names(
    sampler: str | None = None, sigma_schedule: str | None = None, *, prefix: str = ""
) -> dict[str, str]:
    """Limner's names for what is given, under "sampler" and "sigma_schedule".

    Args:
        prefix: of the two fields' names, where an error tells them.

    Raises:
        InvalidRequest: a name that nobody has for what Limner has, with those that are near it; or another
            sigma schedule at the end of the sampler's name than the one given.
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
    """Limner's name for a sampler, and for the sigma schedule at the end of its name.

    Args:
        field: that has this name, for errors to tell.

    Raises:
        InvalidRequest: a name that nobody has for what Limner has, with those that are near it.
    """
    folded = _folded(_UNIPC.sub("unipc_bh1", name.strip()))
    if folded in _SAMPLER_OF:
        return _SAMPLER_OF[folded], None
    for ending, schedule in _SCHEDULE_OF.items():
        if folded.endswith(ending) and folded.removesuffix(ending) in _SAMPLER_OF:
            return _SAMPLER_OF[folded.removesuffix(ending)], schedule
    raise _unknown(field, name, _SAMPLER_OF)


def own_sigma_schedule(name: str, field: str = "sigma_schedule") -> str:
    """Limner's name for a sigma schedule.

    Arguments and errors as `own_sampler`.
    """
    if (folded := _folded(name)) not in _SCHEDULE_OF:
        raise _unknown(field, name, _SCHEDULE_OF)
    return _SCHEDULE_OF[folded]


def own_upscaler(name: str) -> str:
    """Limner's name for what enlarges a picture between two passes. Raises as `own_sampler`."""
    if (folded := _folded(name)) not in _UPSCALER_OF:
        raise _unknown("hires_upscaler", name, _UPSCALER_OF)
    return _UPSCALER_OF[folded]


def _folded(name: str) -> str:
    """What is left of a name where spellings differ: "DPM++ 2M", "k_dpmpp_2m", "dpmpp_2m_gpu" are one."""
    core = re.sub(r"^k_|_gpu$|scheduler$", "", name.strip().lower())
    return re.sub(r"[^a-z0-9]", "", core.replace("++", "pp"))


def _unknown(field: str, name: str, known: Mapping[str, str]) -> InvalidRequest:
    """That nobody calls anything so."""
    near = dict.fromkeys(known[match] for match in difflib.get_close_matches(_folded(name)[:60], known))
    shown = repr(name if len(name) <= 60 else f"{name[:57]}…")
    every = ", ".join(dict.fromkeys(known.values()))
    hint = f"did you mean {' or '.join(near)}?" if near else "name one of these"
    return InvalidRequest(f"{field} is {shown}; expected one of {every}", hint=hint)


# webui's and ComfyUI's own spelling of one UniPC, where "unipc" is Limner's and diffusers' name for another.
_UNIPC = re.compile(r"^(?:UniPC(?! ?bh)(?=\s|$)|uni_pc(?!_bh))")
_SAMPLER_OF = {
    _folded(_UNIPC.sub("unipc_bh1", name)): own
    for own, (webui, _, others) in SAMPLERS.items()
    for name in (own, webui, *others)
}
_SCHEDULE_OF = {
    _folded(name): own for own, (webui, others) in SIGMA_SCHEDULES.items() for name in (own, webui, *others)
}
_UPSCALER_OF = {_folded(name): own for own, webui in UPSCALERS.items() for name in (own, webui)}
