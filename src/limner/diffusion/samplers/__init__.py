"""Samplers: generators that walk a noisy latent down a list of sigmas.

    def sampler(x, sigmas, noise, **options):
        denoised = yield x, sigma      # what is x without its noise?
        ...
        return x

`x` is `x0 + sigmas[0] * unit_noise`, of any shape; `sigmas` are Python floats, decreasing, and the last is
where to stop (0 for a clean latent); `noise()` gives a unit normal tensor like x, and is called once for each
draw, in order. A sampler keeps the dtype of x and holds its history in local variables, so it can be stopped
at any yield. The x that it yields is what it goes on with: whoever drives it may write another latent into
it. Those of `CFG_PP` are sent two estimates, with guidance and without.

Each agrees with the class of diffusers that its docstring names and with k-diffusion's `sample_<name>`. Those
two differ in one thing only: diffusers draws noise on the last step too, where it is multiplied by 0.
`final_draw` is True by default, to leave the generator where diffusers does; False is k-diffusion's way.

    steps    what they have in common
    single   a step asks for all that it needs
    multi    a step goes by what the steps before it were told
    cfg_pp   guidance of the picture, not of the noise
"""

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from limner.diffusion.samplers.cfg_pp import (
    PairedSteps,
    ddim_cfg_pp,
    dpmpp_2m_cfg_pp,
    dpmpp_2s_a_cfg_pp,
    euler_a_cfg_pp,
    euler_cfg_pp,
)
from limner.diffusion.samplers.multi import (
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2m_sde_heun,
    dpmpp_2s,
    dpmpp_3m_sde,
    er_sde,
    gradient_estimation,
    ipndm,
    lms,
    pndm,
    res_multistep,
    sa_solver,
    unipc,
    unipc_bh1,
    unipc_bh2,
)
from limner.diffusion.samplers.single import (
    ddim,
    ddpm,
    dpm2,
    dpm2_a,
    dpm_adaptive,
    dpm_fast,
    dpmpp_2s_a,
    dpmpp_sde,
    euler,
    euler_a,
    heun,
    heunpp2,
    lcm,
    restart,
    seeds_2,
    seeds_3,
    tcd,
)
from limner.diffusion.samplers.steps import Noise, Steps, ancestral_step

__all__ = ["CFG_PP", "SAMPLERS", "AnySteps", "Noise", "PairedSteps", "Steps", "ancestral_step"]

AnySteps = Generator[tuple[Tensor, float], Any, Tensor]

CFG_PP: dict[str, Callable[..., PairedSteps]] = {
    "ddim_cfg_pp": ddim_cfg_pp,
    "euler_cfg_pp": euler_cfg_pp,
    "euler_a_cfg_pp": euler_a_cfg_pp,
    "dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp,
    "dpmpp_2s_a_cfg_pp": dpmpp_2s_a_cfg_pp,
}

SAMPLERS: dict[str, Callable[..., AnySteps]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "heunpp2": heunpp2,
    "restart": restart,
    "dpm2": dpm2,
    "dpm2_a": dpm2_a,
    "lms": lms,
    "deis": deis,
    "pndm": pndm,
    "ipndm": ipndm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2s_a": dpmpp_2s_a,
    "dpmpp_sde": dpmpp_sde,
    "dpm_fast": dpm_fast,
    "dpm_adaptive": dpm_adaptive,
    "unipc": unipc,
    "unipc_bh1": unipc_bh1,
    "unipc_bh2": unipc_bh2,
    "res_multistep": res_multistep,
    "gradient_estimation": gradient_estimation,
    "er_sde": er_sde,
    "seeds_2": seeds_2,
    "seeds_3": seeds_3,
    "sa_solver": sa_solver,
    "lcm": lcm,
    "tcd": tcd,
    **CFG_PP,
}
