"""The YAML files of CompVis and Stability AI that go with single-file checkpoints (`v2-inference-v.yaml`).

A file `model.yaml` next to `model.safetensors` says what its U-Net was trained on, as AUTOMATIC1111's webui
and others read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Prediction = Literal["epsilon", "v_prediction"]

_MAX_BYTES = 1 << 20
_ZERO_SNR = ("zero_terminal_snr", "rescale_betas_zero_snr", "enforce_zero_terminal_snr", "ztsnr")


@dataclass(frozen=True)
class InferenceConfig:
    """What an inference config says.

    Attributes:
        path: The file; None where there is none.
        prediction: What the U-Net predicts; None where there is no file, or none that can be read.
        zero_snr: The noise schedule ends at zero signal-to-noise ratio.
        warnings: Of a file that cannot be read or followed.
    """

    path: Path | None = None
    prediction: Prediction | None = None
    zero_snr: bool = False
    warnings: tuple[str, ...] = ()


def read_inference_config(checkpoint: Path) -> InferenceConfig:
    """The inference config next to a single file: of the same name, ending in .yaml or .yml."""
    for suffix in (".yaml", ".yml", ".YAML", ".YML"):
        for path in (checkpoint.with_suffix(suffix), checkpoint.with_name(checkpoint.name + suffix)):
            if path.is_file():
                return _read(path)
    return InferenceConfig()


def _read(path: Path) -> InferenceConfig:
    import yaml  # type: ignore[import-untyped]  # here, as most checkpoints have no such file

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES >> 20} MiB")
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        params = values["model"]["params"]
        if not isinstance(params, Mapping):
            raise TypeError("model.params is no mapping")
        zero_snr = any(params.get(key) is True for key in _ZERO_SNR)
        return InferenceConfig(path, _prediction(params), zero_snr)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        return InferenceConfig(path, warnings=(f"{path} is not followed, as it cannot be read: {reason}",))


def _prediction(params: Mapping[str, Any]) -> Prediction:
    """Of the classes of CompVis by `parameterization`, of Stability AI's by the denoiser's scaling."""
    denoiser = params.get("denoiser_config") or {}
    scaling = str(((denoiser.get("params") or {}).get("scaling_config") or {}).get("target", ""))
    parameterization = params.get("parameterization", "v" if scaling.endswith("VScaling") else "eps")
    predictions: dict[str, Prediction] = {"eps": "epsilon", "epsilon": "epsilon"}
    predictions |= {"v": "v_prediction", "v_prediction": "v_prediction"}
    if parameterization not in predictions:
        raise ValueError(f"parameterization is {parameterization!r}, expected 'eps' or 'v'")
    return predictions[parameterization]
