"""The table of samplers: everything known of each but its mathematics, without torch.

The names that requests accept, the JSON schema, the command line's choices, names of other programs and
`limner.diffusion.samplers.SAMPLERS` derive from `SAMPLER_TABLE`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from limner.diffusion.config import SchedulerConfig
from limner.diffusion.schedule import NoiseSchedule, SigmaScheduleName, Spacing


@dataclass(frozen=True)
class Convention:
    """Conventions of a scheduler class of diffusers that the mathematics does not determine.

    Attributes:
        spacing: Timestep spacing if the config names none.
        own_spacing: Whether `spacing` applies even if the config names another.
        unit_variance: Whether it scales the latents by 1 / sqrt(sigma**2 + 1) throughout the run.
            Otherwise the initial noise has standard deviation sigma, or with leading spacing (whose first
            sigma is not the schedule's last) sqrt(sigma**2 + 1), and the result is not rescaled.
        fractional: Whether the network receives fractional timesteps. Otherwise they are rounded.
        rounds_karras: Whether it rounds the timesteps of the Karras sigma schedule.
        spare_step: Whether it spaces one step more than requested and drops the last, and lets a sigma
            schedule span the whole noise schedule, with truncated timesteps where diffusers has that sigma
            schedule. Otherwise a sigma schedule spans the timesteps of the spacing.
        stride: The default of `set_alpha_to_one`, for classes in which each step goes T // n timesteps down
            even if the next timestep is elsewhere. None for classes that step to the next timestep.
        end: Final sigma: 0, that of timestep 0, or as the config says: by `set_alpha_to_one` for classes with
            a stride, by `final_sigmas_type` for others.
        sigma_schedules: Whether it uses the config's `use_karras_sigmas` and similar keys.
        distilled: Whether it visits a subset of the `original_inference_steps` timesteps that the model was
            distilled on, whatever the spacing.
        repeats_first: Whether the first step is taken twice, as in `pndm`.
        infinity: Finite value used for an infinite sigma (zero terminal SNR).
    """

    spacing: Spacing
    unit_variance: bool
    fractional: bool
    own_spacing: bool = False
    rounds_karras: bool = False
    spare_step: bool = False
    stride: bool | None = None
    end: Literal["zero", "lowest", "configured"] = "zero"
    sigma_schedules: bool = False
    distilled: bool = False
    repeats_first: bool = False
    infinity: float = 4096.0


@dataclass(frozen=True)
class Run:
    """What the implied options of a sampler depend on.

    Attributes:
        config: The checkpoint's.
        schedule: Noise schedule, without an infinite sigma.
        timesteps: Timesteps of the run, decreasing.
        same_sampler: Whether the config is of the sampler that runs, rather than of another.
        options: Options that the caller gave.
    """

    config: SchedulerConfig
    schedule: NoiseSchedule
    timesteps: Sequence[float]
    same_sampler: bool
    options: Mapping[str, Any]


def _no_options(run: Run) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class SamplerInfo:
    """A row of `SAMPLER_TABLE`.

    Attributes:
        label: Name in AUTOMATIC1111's webui or its fork Forge, or one that follows their pattern.
        convention: Choices of the sampler's class in diffusers, or of the class it is closest to.
        aliases: Further names, of other programs. Class names of diffusers are in `SAMPLER_CLASSES`.
        automatic: Sigma schedule that webui's schedule type "Automatic" stands for.
        takes: Options that a request may set.
        implied_options: Function that returns the keyword arguments of the sampler that a config implies.
        cfg_pp: Whether it uses CFG++ (Chung et al. 2024), which has a guidance scale of its own.
        revisits: Whether it may call the network at a sigma of an earlier step after one of a later step. A
            prompt that changes after a step then also changes the steps before it.
    """

    label: str
    convention: Convention
    aliases: tuple[str, ...] = ()
    automatic: SigmaScheduleName = "uniform"
    takes: tuple[str, ...] = ()
    implied_options: Callable[[Run], dict[str, Any]] = _no_options
    cfg_pp: bool = False
    revisits: bool = False


def _ddpm_options(run: Run) -> dict[str, Any]:
    return {"final_draw": run.timesteps[-1] > 0.0}


def _pndm_options(run: Run) -> dict[str, Any]:
    return {"prediction_type": run.config.prediction_type}


def _lcm_options(run: Run) -> dict[str, Any]:
    scaled = [run.config.timestep_scaling * t for t in run.timesteps]
    return {"kept": [_SIGMA_DATA**2 / (t**2 + _SIGMA_DATA**2) for t in scaled]}


def _tcd_options(run: Run) -> dict[str, Any]:
    share = 1.0 - run.options.get("eta", 0.3)
    return {"inner": [run.schedule.sigma_at(int(share * t)) for t in (*run.timesteps[1:], 0.0)]}


def _sa_solver_options(run: Run) -> dict[str, Any]:
    return {"taus": [float(200.0 <= t <= 800.0) for t in run.timesteps]}  # no noise at either end


def _dpmpp_2m_options(run: Run) -> dict[str, Any]:
    return {
        "order": run.config.solver_order if run.same_sampler else 2,
        "solver_type": _midpoint_or_heun(run.config),
        "lowered": _lowered(run) or int(run.config.euler_at_final),
    }


def _dpmpp_2s_options(run: Run) -> dict[str, Any]:
    # Its class, unlike the others, does not lower the order where the config does not say.
    lowered = int(run.config.lower_order_final is True)
    return {"solver_type": _midpoint_or_heun(run.config), "lowered": lowered}


def _deis_options(run: Run) -> dict[str, Any]:
    return {"order": run.config.solver_order, "lowered": _lowered(run)}


def _unipc_options(run: Run) -> dict[str, Any]:
    return {
        "order": run.config.solver_order,
        "solver_type": run.config.solver_type if run.config.solver_type in ("bh1", "bh2") else "bh2",
        "lower_order_final": run.config.lower_order_final is not False,
    }


def _lowered(run: Run) -> int:
    """The number of last steps of lower order."""
    return 2 if run.config.lower_order_final is not False and len(run.timesteps) < 15 else 0


def _midpoint_or_heun(config: SchedulerConfig) -> str:
    """The solver type; those of other solvers have no meaning here."""
    return config.solver_type if config.solver_type in ("midpoint", "heun") else "midpoint"


_SIGMA_DATA = 0.5  # of the boundary condition of latent consistency models (Luo et al. 2023)

_ETA, _NOISE, _BOTH = ("eta",), ("s_noise",), ("eta", "s_noise")
_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")

_DDPM = Convention("leading", unit_variance=True, fractional=False, infinity=1e6)
_DDIM = replace(_DDPM, stride=True, end="configured")
_PNDM = replace(_DDPM, stride=False, end="configured", repeats_first=True)
_LCM = replace(_DDPM, spacing="trailing", distilled=True)
_EULER_A = Convention("linspace", unit_variance=False, fractional=True)
_HEUN = replace(_EULER_A, sigma_schedules=True)
_EULER = replace(_HEUN, end="configured")
_DPM2 = replace(_HEUN, rounds_karras=True)
_DPM = Convention(
    "linspace",
    unit_variance=True,
    fractional=False,
    rounds_karras=True,
    spare_step=True,
    end="configured",
    sigma_schedules=True,
)
_DEIS = replace(_DPM, end="lowest")

SAMPLER_TABLE: dict[str, SamplerInfo] = {
    "ddim": SamplerInfo("DDIM", _DDIM, takes=_ETA),
    "ddpm": SamplerInfo("DDPM", _DDPM, implied_options=_ddpm_options),
    "euler": SamplerInfo("Euler", _EULER, takes=_CHURN),
    "euler_a": SamplerInfo("Euler a", _EULER_A, ("euler_ancestral",), takes=_BOTH),
    "heun": SamplerInfo("Heun", _HEUN, takes=_CHURN),
    "heunpp2": SamplerInfo("HeunPP2", _HEUN, revisits=True),
    "restart": SamplerInfo("Restart", _HEUN, automatic="karras", takes=_NOISE, revisits=True),
    "dpm2": SamplerInfo("DPM2", _DPM2, automatic="karras", takes=_CHURN),
    "dpm2_a": SamplerInfo("DPM2 a", _DPM2, ("dpm_2_ancestral",), automatic="karras", takes=_BOTH),
    "lms": SamplerInfo("LMS", _HEUN),
    "deis": SamplerInfo("DEIS", _DEIS, implied_options=_deis_options),
    "pndm": SamplerInfo("PLMS", _PNDM, implied_options=_pndm_options),
    "ipndm": SamplerInfo("IPNDM", _HEUN),
    "dpmpp_2m": SamplerInfo("DPM++ 2M", _DPM, automatic="karras", implied_options=_dpmpp_2m_options),
    "dpmpp_2m_sde": SamplerInfo(
        "DPM++ 2M SDE", _DPM, automatic="exponential", takes=_BOTH, implied_options=_dpmpp_2m_options
    ),
    "dpmpp_2m_sde_heun": SamplerInfo("DPM++ 2M SDE Heun", _DPM, automatic="exponential", takes=_BOTH),
    "dpmpp_3m_sde": SamplerInfo("DPM++ 3M SDE", _DPM, automatic="exponential", takes=_BOTH),
    "dpmpp_2s": SamplerInfo("DPM++ 2S", replace(_DPM, own_spacing=True), implied_options=_dpmpp_2s_options),
    "dpmpp_2s_a": SamplerInfo("DPM++ 2S a", _HEUN, ("dpmpp_2s_ancestral",), automatic="karras", takes=_BOTH),
    "dpmpp_sde": SamplerInfo("DPM++ SDE", _HEUN, automatic="karras", takes=_BOTH),
    "dpm_fast": SamplerInfo("DPM fast", _HEUN, takes=_BOTH, revisits=True),
    "dpm_adaptive": SamplerInfo("DPM adaptive", _HEUN, ("dpm_ad",), revisits=True),
    "unipc": SamplerInfo("unipc", _DPM, implied_options=_unipc_options),
    "unipc_bh1": SamplerInfo("UniPC", _DPM, ("uni_pc", "uni_pc_bh1")),
    "unipc_bh2": SamplerInfo("UniPC bh2", _DPM, ("uni_pc_bh2",)),
    "res_multistep": SamplerInfo("Res Multistep", _HEUN),
    "gradient_estimation": SamplerInfo("Gradient Estimation", _HEUN),
    "er_sde": SamplerInfo("ER SDE", _HEUN, takes=_NOISE),
    "seeds_2": SamplerInfo("SEEDS 2", _HEUN, takes=_BOTH),
    "seeds_3": SamplerInfo("SEEDS 3", _HEUN, takes=_BOTH),
    "sa_solver": SamplerInfo(
        "SA Solver", _DEIS, ("SASolverScheduler",), takes=_NOISE, implied_options=_sa_solver_options
    ),
    "lcm": SamplerInfo("LCM", _LCM, implied_options=_lcm_options),
    "tcd": SamplerInfo("TCD", replace(_LCM, end="lowest"), takes=_ETA, implied_options=_tcd_options),
    "ddim_cfg_pp": SamplerInfo("DDIM CFG++", _DDIM, takes=_ETA, cfg_pp=True),
    "euler_cfg_pp": SamplerInfo("Euler CFG++", _EULER, cfg_pp=True),
    "euler_a_cfg_pp": SamplerInfo(
        "Euler a CFG++", _EULER_A, ("euler_ancestral_cfg_pp",), takes=_BOTH, cfg_pp=True
    ),
    "dpmpp_2m_cfg_pp": SamplerInfo("DPM++ 2M CFG++", _DPM, automatic="karras", cfg_pp=True),
    "dpmpp_2s_a_cfg_pp": SamplerInfo(
        "DPM++ 2S a CFG++",
        _HEUN,
        ("dpmpp_2s_ancestral_cfg_pp",),
        automatic="karras",
        takes=_BOTH,
        cfg_pp=True,
    ),
}
"""By name, which is also that of the function in `limner.diffusion.samplers`.

DDPM, DEIS, HeunPP2, IPNDM and TCD are labels of webui's fork Forge. Neither has DPM++ 2S, unipc, UniPC bh2,
Res Multistep to SA Solver, and the CFG++ samplers but DDIM's; their labels follow the pattern of the others.
"""

if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[*SAMPLER_TABLE]
