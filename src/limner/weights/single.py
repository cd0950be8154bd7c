"""A whole checkpoint in one safetensors file: its tensors, memory-mapped under the hub's names.

`limner.catalogue.single` determines the family and the geometry of the networks from the header.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from limner.catalogue.configs import PartConfig
from limner.catalogue.headers import Header, TensorInfo, read_header
from limner.catalogue.inference_config import Prediction
from limner.catalogue.single import LAYOUTS, Layout, is_openclip, read_single
from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet_config import UNetConfig
from limner.nn.vae_config import VAEConfig
from limner.request.facts import Family

from .keymaps import Entry, clip_entries, openclip_entries, single_shapes, unet_entries, vae_entries
from .load import refuse_unless_fitting
from .parts import Checkpoint, SinglePart
from .tensors import DTYPES


def read_single_file(
    path: Path,
    *,
    prediction_type: Prediction | None = None,
    tokenizer: Path | None = None,
    replaced: Collection[str] = (),
    text_configs: Mapping[str, CLIPTextConfig] | None = None,
) -> Checkpoint:
    """Read a single-file checkpoint's header; cost does not depend on the file's size.

    The prediction type and the sample size are found as by `read_single`.

    Args:
        prediction_type: Prediction type, whatever the file says.
        tokenizer: Folder with the files of CLIP's tokenizer, of which a single file has none.
        replaced: Parts that come from elsewhere. The file need not hold them, and the checkpoint lacks them.
        text_configs: Geometry of the text encoders among these.

    Raises:
        InvalidCheckpoint: The file is broken, lacks a network, or has keys or shapes that the networks do not
            have; the message names them.
        UnsupportedModel: A model of another kind, or one whose weights are stored with scales.
        PickleRefused: The file is a pickle.
    """
    return checkpoint_of(
        path,
        read_header(path),
        prediction_type=prediction_type,
        tokenizer=tokenizer,
        replaced=replaced,
        text_configs=text_configs or {},
    )


def checkpoint_of(
    path: Path,
    header: Header,
    *,
    prediction_type: Prediction | None = None,
    tokenizer: Path | None = None,
    replaced: Collection[str] = (),
    text_configs: Mapping[str, CLIPTextConfig] | None = None,
) -> Checkpoint:
    """Return the checkpoint of a file with this header, which need not exist yet; as `read_single_file`."""
    found = read_single(
        path, header, prediction_type=prediction_type, replaced=replaced, text_configs=text_configs
    )
    try:
        entries = {
            part: tuple(
                replace(entry, single=found.keys.get(entry.single, entry.single))
                for entry in _entries_of(part, config, found.layout)
            )
            for part, config in found.configs.items()
        }
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
        reason = str(error).partition("\n")[0]  # torch adds its own stack trace
        raise InvalidCheckpoint(f"the shapes in {path} describe no Stable Diffusion: {reason}") from error
    every = [entry for held in entries.values() for entry in held]
    texts = found.layout.texts
    return Checkpoint(
        folder=path,
        parts={part: SinglePart(config, path, entries[part]) for part, config in found.configs.items()},
        scheduler_config=found.scheduler_config,
        tokenizers=dict.fromkeys(texts, tokenizer) if tokenizer else {},
        # OpenCLIP, which 2.x and the second encoder of XL come from, pads with token 0.
        pad_tokens={part: "!" for part, prefix in texts.items() if is_openclip(prefix)},
        zero_negative=found.zero_negative,
        unused=check_keys(path, header.tensors, every, found.is_unused),
        warnings=found.warnings,
    )


def family_of(texts: Mapping[str, CLIPTextConfig]) -> Family:
    """Return the family with these text encoders, whatever their size.

    Raises:
        UnsupportedModel: No family has these text encoders.
    """
    return _layout_of(texts).family


def single_entries(unet: UNetConfig, vae: VAEConfig, texts: Mapping[str, CLIPTextConfig]) -> list[Entry]:
    """Return the entries of a model in a single file.

    Raises:
        UnsupportedModel: No family has these text encoders.
    """
    layout = _layout_of(texts)
    configs: dict[str, PartConfig] = {"unet": unet, "vae": vae, **texts}
    return [entry for part, config in configs.items() for entry in _entries_of(part, config, layout)]


def _layout_of(texts: Mapping[str, CLIPTextConfig]) -> Layout:
    for layout in LAYOUTS:
        if layout.texts.keys() == texts.keys() and all(
            is_openclip(prefix) == (texts[part].hidden_act == "gelu") for part, prefix in layout.texts.items()
        ):
            return layout
    given = ", ".join(f"{part} ({config.hidden_act})" for part, config in texts.items())
    raise UnsupportedModel(f"no single file has the text encoders {given}")


def _entries_of(part: str, config: PartConfig, layout: Layout) -> list[Entry]:
    if isinstance(config, UNetConfig):
        return unet_entries(config)
    if isinstance(config, VAEConfig):
        return vae_entries(config)
    prefix = layout.texts[part]
    entries = openclip_entries if is_openclip(prefix) else clip_entries
    return entries(config, part, prefix)


def check_keys(
    path: Path, infos: Mapping[str, TensorInfo], entries: list[Entry], harmless: Callable[[str], object]
) -> tuple[str, ...]:
    """Return the keys that no entry uses.

    Raises:
        InvalidCheckpoint: Keys are missing, of another shape, or neither used nor harmless; they are named.
    """
    expected = single_shapes(entries)
    rest = tuple(sorted(infos.keys() - expected.keys()))
    refuse_unless_fitting(
        path,
        {key: f"floating {list(shape)}" for key, shape in expected.items()},
        {
            key: f"{'floating' if DTYPES[info.dtype].is_floating_point else info.dtype} {list(info.shape)}"
            for key, info in infos.items()
            if key in expected
        },
        [key for key in rest if not harmless(key)],
        model="a model of these shapes",
    )
    return rest
