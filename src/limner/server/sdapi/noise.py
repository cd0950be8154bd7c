"""Noise of samplers: eta, s_churn and the like, from a body, an infotext or the options of an account."""

from collections.abc import Mapping
from typing import Any

from limner.diffusion.sampler_table import SAMPLER_TABLE

from .bodies import GenerationBody
from .options import number

_NAMES = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")
_USUAL = {"eta": 1.0, "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0, "s_noise": 1.0}  # in AUTOMATIC1111
_OWN_ETAS = {"dpm_fast": 0.0, "tcd": 0.3}  # of a request without one, where it is not the usual


def set_noise_options(
    fields: dict[str, Any], body: GenerationBody, options: Mapping[str, Any], override: Mapping[str, Any]
) -> list[str]:
    """Set the noise options of the sampler in `fields`, and `guidance_skip`.

    A value counts from the body, else from an infotext (in `fields` already), else from the options.

    Args:
        options: The account's, with those of the request.
        override: The request's alone.

    Returns:
        Names of the options that the request gives and that have no effect.

    Raises:
        Refusal: An option that is no number.
    """
    sampler = fields["sampler"]
    takes, ddim = SAMPLER_TABLE[sampler].takes, sampler.startswith("ddim")
    unused: list[str] = []
    for name in _NAMES:
        usual = 0.0 if name == "eta" and ddim else _USUAL[name]
        value, given = getattr(body, name), True
        if value is None and name in fields:
            value = fields[name]
        elif value is None:
            option = {"eta": "eta_ddim" if ddim else "eta_ancestral"}.get(name, name)
            given = option in override
            if sampler == "tcd" and not given:  # which AUTOMATIC1111 does not have
                value = _OWN_ETAS["tcd"] if name == "eta" else usual
            else:
                value = number(options.get(option, usual), option, float)
        fields.pop(name, None)
        if name in takes:
            if value != (_OWN_ETAS.get(sampler, usual) if name == "eta" else usual):
                fields[name] = value
        elif given and value not in (usual, 1.0 if name == "eta" else usual):  # 1 is what clients always send
            unused.append(name)
    if "s_churn" not in fields:
        unused += [name for name in ("s_tmin", "s_tmax") if fields.pop(name, None) is not None]
    if body.s_min_uncond is not None:
        fields["guidance_skip"] = body.s_min_uncond
    elif "guidance_skip" not in fields or "s_min_uncond" in override:
        fields["guidance_skip"] = number(options.get("s_min_uncond", 0.0), "s_min_uncond", float)
    return unused
