"""The options that generating commands share: how models are loaded. Those of requests are in `fields`.

A command takes a class of options as one parameter, and `spread` makes an option of each of its fields:

    @spread
    def generate(prompt: …, *, fields: RequestOptions, models: ModelOptions) -> None: ...
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from limner.errors import InvalidRequest
from limner.model.options import PARTS
from limner.settings import Settings, read_watermark_key

if TYPE_CHECKING:
    from limner.safety.watermark import KeyName

# Headings of the help.
MODEL, PARTS_PANEL, SPEED, FILES, SAFETY, OUTPUT = (
    "Model",
    "Model parts",
    "Speed and memory",
    "Files by name",
    "Safety",
    "Output",
)


def option(help: str, panel: str, *names: str, **more: Any) -> Any:
    """An option under a heading of the help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def flag(help: str, panel: str, *names: str) -> Any:
    """An option without a value."""
    return option(help, panel, *names, metavar="", show_default=False)


_WILDCARDS_DIR = (
    "Folder of files for wildcards. Default: wildcards. May be repeated. Environment: LIMNER_WILDCARDS_DIR."
)
_STYLES_FILE = (
    "File of styles: AUTOMATIC1111's CSV, or JSON. Default: styles.csv. May be repeated. "
    "Environment: LIMNER_STYLES_FILE."
)
_COMPILED = "Compile the U-Net for a GPU. Takes minutes, and pays for many images."
_ATTENTION = "How attention is computed: auto, fused, or sliced (in blocks, which takes less memory)."
_OFFLOAD = (
    "What waits off the GPU until it runs: none, model (whole networks) or sequential (blocks of them)."
)
_LOW_VRAM = "Short for --offload model."
_LORA_DIR = (
    "Folder of LoRA files that prompts and --lora name. May be repeated. Environment: LIMNER_LORA_DIR."
)
_EMBEDDING_DIR = (
    "Folder of textual inversions, whose file names are words in prompts. May be repeated. "
    "Environment: LIMNER_EMBEDDING_DIR."
)
_CONTROL_DIR = (
    "Folder of ControlNets and T2I-Adapters that --control names. May be repeated. "
    "Environment: LIMNER_CONTROL_DIR."
)
_IMAGE_PROMPT_DIR = (
    "Folder of IP-Adapters that --image-prompt names. May be repeated. Environment: LIMNER_IMAGE_PROMPT_DIR."
)
_ASSETS_DIR = (
    "Folder searched for the input images of a record, by their content. May be repeated. "
    "Environment: LIMNER_ASSETS_DIR."
)
_PREDICTION = "What the U-Net predicts: epsilon or v_prediction. For single files that do not say."

_SAFETY = "Policy that prompts and images must pass: off (default), standard, strict, or a policy file."

Text = str | None  # None for an option that is left out
Whole = int | None

_WATERMARK = (
    "Mark each image invisibly with an id, which limner detect finds again. Its key: the environment's "
    "LIMNER_WATERMARK_KEY."
)
Watermark = Annotated[bool, flag(_WATERMARK, OUTPUT, "--watermark")]
_SIGN = (
    "Sign each image: a C2PA manifest in the file says what made it, and from what. Keys: the environment's "
    "LIMNER_SIGNING_CERTIFICATE and LIMNER_SIGNING_KEY, else those of a development CA."
)
Sign = Annotated[bool, flag(_SIGN, OUTPUT, "--sign")]
_SIGN_PROMPT = "Sign each image, with the prompt in its manifest."
SignPrompt = Annotated[bool, flag(_SIGN_PROMPT, OUTPUT, "--sign-prompt")]
Quiet = Annotated[bool, flag("Warnings and errors only.", OUTPUT, "--quiet", "-q")]


class _Options:
    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name, value in vars(self).items() if value not in (None, [])}


_Parts = make_dataclass(
    "_Parts",
    [
        (
            name,
            Annotated[
                Text, option(f"{what} in place of the model's own.", PARTS_PANEL, metavar="PATH|HUB-ID")
            ],
            None,
        )
        for name, what in PARTS.items()
    ],
    bases=(_Options,),
    frozen=True,
)


@dataclass(frozen=True)
class ModelOptions(_Parts):  # type: ignore[misc, valid-type]
    """How models are loaded: arguments of `limner.load`."""

    prediction_type: Annotated[Text, option(_PREDICTION, MODEL)] = None
    device: Annotated[Text, option("Device: auto, cpu, cuda, cuda:1 …", SPEED)] = None
    precision: Annotated[Text, option("Precision: auto, fp32, bf16, fp16 or int8.", SPEED)] = None
    backend: Annotated[
        Text, option("Backend that runs the networks: torch (default) or openvino.", SPEED)
    ] = None
    compiled: Annotated[bool | None, flag(_COMPILED, SPEED, "--compiled")] = None
    attention: Annotated[Text, option(_ATTENTION, SPEED)] = None
    offload: Annotated[Text, option(_OFFLOAD, SPEED)] = None
    low_vram: Annotated[bool | None, flag(_LOW_VRAM, SPEED, "--low-vram")] = None
    lora_dirs: Annotated[
        list[Path] | None,
        option(_LORA_DIR, FILES, "--lora-dir", metavar="FOLDER"),
    ] = None
    embedding_dirs: Annotated[
        list[Path] | None,
        option(_EMBEDDING_DIR, FILES, "--embedding-dir", metavar="FOLDER"),
    ] = None
    control_dirs: Annotated[
        list[Path] | None,
        option(_CONTROL_DIR, FILES, "--control-dir", metavar="FOLDER"),
    ] = None
    image_prompt_dirs: Annotated[
        list[Path] | None,
        option(_IMAGE_PROMPT_DIR, FILES, "--image-prompt-dir", metavar="FOLDER"),
    ] = None
    wildcards_dirs: Annotated[
        list[Path] | None,
        option(_WILDCARDS_DIR, FILES, "--wildcards-dir", metavar="FOLDER"),
    ] = None
    styles_files: Annotated[
        list[Path] | None,
        option(_STYLES_FILE, FILES, "--styles-file", metavar="FILE"),
    ] = None

    assets_dirs: Annotated[
        list[Path] | None,
        option(_ASSETS_DIR, FILES, "--assets-dir", metavar="FOLDER"),
    ] = None

    safety: Annotated[Text, option(_SAFETY, SAFETY, metavar="LEVEL|FILE")] = None

    def given(self) -> dict[str, Any]:
        """Arguments of `limner.load`: the options that were given, else the settings."""
        settings = Settings.read()
        names = [name for name in vars(self) if name.endswith(("_dirs", "_files"))]
        set_before = {name: list(getattr(settings, name)) for name in names if getattr(settings, name)}
        options = {"cache_dir": settings.cache_dir, **set_before, **super().given()}
        if folders := options.pop("assets_dirs", None):
            from limner.images.assets import Assets

            for folder in folders:
                if not folder.is_dir():
                    raise InvalidRequest(f"there is no folder {folder}", hint="name folders with images")
            options["assets"] = Assets(folders=tuple(folders))
        if options.pop("low_vram", False) and options.setdefault("offload", "model") != "model":
            raise InvalidRequest(f"--low-vram is --offload model, and --offload {self.offload} was given too")
        return options


def watermark_key(wanted: bool) -> bytes | None:
    """The key to mark images with; None if no mark is wanted.

    Raises:
        InvalidRequest: The key that is set is too short, or cannot be read.
    """
    if not wanted:
        return None
    from limner.safety.watermark import DEFAULT_KEY

    own = read_watermark_key()
    return DEFAULT_KEY if own is None else own.encode()


def watermark_keys() -> "dict[KeyName, bytes]":
    """The keys that marks are looked for with: that of the settings, and the published one.

    Raises:
        InvalidRequest: The key that is set is too short, or cannot be read.
    """
    from limner.safety.watermark import known_keys

    own = read_watermark_key()
    return known_keys(None if own is None else own.encode())


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A function for typer with an option for each field of those parameters that are classes of options.

    Such a class is a dataclass whose fields are annotated with options, or has `parameters()`, which gives
    the options, and takes their values.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters, classes = [], dict[str, tuple[Any, list[str]]]()
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))
            continue
        own = kind.parameters() if hasattr(kind, "parameters") else _parameters(kind)
        parameters += own
        classes[name] = (kind, [one.name for one in own])

    def spreading(**values: Any) -> None:
        gathered = {}
        for name, (kind, names) in classes.items():
            own = {name: values.pop(name) for name in names}
            gathered[name] = kind(own) if hasattr(kind, "parameters") else kind(**own)
        command(**values, **gathered)

    spreading.__name__, spreading.__doc__ = command.__name__, command.__doc__
    spreading.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    spreading.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spreading


def _parameters(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]
