"""Settings: every environment variable that Limner reads, and where it keeps files of its own.

The command line reads them and hands the values down. From Python they are arguments of `limner.load`; only
the default of `cache_dir` comes from the environment there, by `default_cache_dir`. `Settings` are those of a
process that draws; `ServeSettings` are those of `limner serve`, and are imported when they are first used.
Both are also read from a TOML file, `limner.toml`, whose values the environment overrides.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from limner.errors import InvalidRequest

if TYPE_CHECKING:
    from .serve import ServeSettings as ServeSettings

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

VARIABLES = {
    "cache_dir": "LIMNER_CACHE",
    "lora_dirs": "LIMNER_LORA_DIR",
    "embedding_dirs": "LIMNER_EMBEDDING_DIR",
    "control_dirs": "LIMNER_CONTROL_DIR",
    "image_prompt_dirs": "LIMNER_IMAGE_PROMPT_DIR",
    "wildcards_dirs": "LIMNER_WILDCARDS_DIR",
    "styles_files": "LIMNER_STYLES_FILE",
    "assets_dirs": "LIMNER_ASSETS_DIR",
    "watermark_key": "LIMNER_WATERMARK_KEY",
    "signing_certificate": "LIMNER_SIGNING_CERTIFICATE",
    "signing_key": "LIMNER_SIGNING_KEY",
    "timestamp_url": "LIMNER_TIMESTAMP_URL",
    "trust_anchors": "LIMNER_TRUST_ANCHORS",
    "log_level": "LIMNER_LOG_LEVEL",
    "log_format": "LIMNER_LOG_FORMAT",
}
"""The environment variable of each setting."""

CONFIG_VARIABLE = "LIMNER_CONFIG"
CONFIG_FILE = "limner.toml"
_OF_COMMANDS = frozenset(VARIABLES) - {
    *("log_level", "log_format", "watermark_key"),
    *("signing_certificate", "signing_key", "timestamp_url", "trust_anchors"),
}
"""Settings of the file that hold for all commands; logging is that of the service, and keys are secrets."""

WATERMARK_KEY_FILE = "watermark.key"
DEVELOPMENT_KEYS = "signing"  # folder of a development CA, in the data folder
_LEAST_KEY = 16  # characters


def __getattr__(name: str) -> Any:
    if name == "ServeSettings":
        from .serve import ServeSettings

        return ServeSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Settings:
    """Settings of a process.

    Attributes:
        cache_dir: Folder for what can be computed again: hashes, OpenVINO graphs, tuning.
        lora_dirs: Folders of LoRA files.
        embedding_dirs: Folders of textual inversions.
        control_dirs: Folders of control networks.
        image_prompt_dirs: Folders of IP-Adapters and image encoders.
        wildcards_dirs: Folders of files for wildcards.
        styles_files: Files of styles.
        assets_dirs: Folders searched for the input images of records.
        log_level: Least severity of events that are logged. None: warnings, and the progress of training.
        log_format: "text" for people, "json" for programs: one object a line.
    """

    cache_dir: Path = field(default_factory=lambda: default_cache_dir())
    lora_dirs: tuple[Path, ...] = ()
    embedding_dirs: tuple[Path, ...] = ()
    control_dirs: tuple[Path, ...] = ()
    image_prompt_dirs: tuple[Path, ...] = ()
    wildcards_dirs: tuple[Path, ...] = ()
    styles_files: tuple[Path, ...] = ()
    assets_dirs: tuple[Path, ...] = ()
    log_level: LogLevel | None = None
    log_format: LogFormat = "text"

    @classmethod
    def read(
        cls,
        environment: Mapping[str, str] = os.environ,
        *,
        log_level: str | None = None,
        log_format: str | None = None,
    ) -> "Settings":
        """The settings of an environment and of the settings file. Empty variables count as unset.

        Args:
            log_level, log_format: Take the place of what the environment says.

        Raises:
            InvalidRequest: A value that the setting does not take, or a file that cannot be read.
        """
        given: dict[str, Any] = {
            **{name: value for name, value in read_file(environment).items() if name in _OF_COMMANDS},
            **{name: environment[key] for name, key in VARIABLES.items() if environment.get(key)},
        }
        return cls(
            cache_dir=Path(given["cache_dir"]) if "cache_dir" in given else default_cache_dir(environment),
            lora_dirs=_paths(given.get("lora_dirs")),
            embedding_dirs=_paths(given.get("embedding_dirs")),
            control_dirs=_paths(given.get("control_dirs")),
            image_prompt_dirs=_paths(given.get("image_prompt_dirs")),
            wildcards_dirs=_paths(given.get("wildcards_dirs")),
            styles_files=_paths(given.get("styles_files")),
            assets_dirs=_paths(given.get("assets_dirs")),
            log_level=_log_level(log_level or given.get("log_level")),
            log_format=_log_format((log_format or given.get("log_format", "text")).lower()),
        )


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The cache folder: `LIMNER_CACHE`, else `limner` in the system's folder for caches."""
    if own := environment.get(VARIABLES["cache_dir"]):
        return Path(own)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limner"


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The service's folder: `limner` in the system's folder for data."""
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "limner"


def settings_file(environment: Mapping[str, str] = os.environ, named: Path | None = None) -> Path | None:
    """The settings file: the one that is named, or that of `LIMNER_CONFIG`, else `limner.toml` in the current
    folder; None if that is not there."""
    if named is None and environment.get(CONFIG_VARIABLE):
        named = Path(environment[CONFIG_VARIABLE])
    return named or (Path(CONFIG_FILE) if os.path.isfile(CONFIG_FILE) else None)


def read_file(environment: Mapping[str, str] = os.environ, named: Path | None = None) -> dict[str, Any]:
    """The values of the settings file; none without one.

    Raises:
        InvalidRequest: It is not there, or no TOML.
    """
    path = settings_file(environment, named)
    if path is None:
        return {}
    import tomllib

    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise InvalidRequest(f"there is no settings file {path}", fields=("config",)) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"the settings file {path} cannot be read: {error}", fields=("config",)
        ) from error


def read_watermark_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The key of `LIMNER_WATERMARK_KEY`, else of `watermark.key` in the data folder; None without both.

    Raises:
        InvalidRequest: It is too short, or cannot be read.
    """
    name = VARIABLES["watermark_key"]
    if key := environment.get(name, "").strip():
        return _checked_key(key, name)
    return watermark_key_in(default_data_dir(environment))


def watermark_key_in(folder: Path) -> str | None:
    """The key of `watermark.key` in a folder; None without one. Raises as `read_watermark_key`."""
    source = folder / WATERMARK_KEY_FILE
    try:
        return _checked_key(source.read_text(encoding="utf-8").strip(), str(source))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the watermark key in {source} cannot be read: {error}") from error


def _checked_key(key: str, name: str) -> str:
    if len(key) < _LEAST_KEY:
        raise InvalidRequest(
            f"the watermark key in {name} has {len(key)} characters; expected at least {_LEAST_KEY}",
            hint="make one with: openssl rand -hex 32",
        )
    return key


@dataclass(frozen=True)
class SigningSettings:
    """How manifests of images are signed and checked. See `limner.safety.provenance`.

    Attributes:
        certificate, key: PEM files of the signer's certificate chain and private key; None: a development
            CA's.
        timestamp_url: URL of a time-stamp authority; None: none is asked.
        trust_anchors: PEM files of certificates that vouch for signers.
        development_keys: Folder of the development CA.
    """

    certificate: Path | None
    key: Path | None
    timestamp_url: str | None
    trust_anchors: tuple[Path, ...]
    development_keys: Path

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "SigningSettings":
        """The settings of an environment. Empty variables count as unset.

        Raises:
            InvalidRequest: A certificate without a key or the other way round, or a URL that is none.
        """
        names = ("signing_certificate", "signing_key", "timestamp_url")
        certificate, key, url = (environment.get(VARIABLES[name]) for name in names)
        if bool(certificate) != bool(key):
            given, other = ("certificate", "key") if certificate else ("key", "certificate")
            raise InvalidRequest(
                f"{VARIABLES[f'signing_{given}']} is set without {VARIABLES[f'signing_{other}']}",
                hint="set both, or none for a development CA",
            )
        if url and not url.startswith(("http://", "https://")):
            raise InvalidRequest(f"{VARIABLES['timestamp_url']} is {url!r}; expected an http or https URL")
        return cls(
            certificate=Path(certificate) if certificate else None,
            key=Path(key) if key else None,
            timestamp_url=url or None,
            trust_anchors=_paths(environment.get(VARIABLES["trust_anchors"])),
            development_keys=default_data_dir(environment) / DEVELOPMENT_KEYS,
        )


def _paths(given: Any) -> tuple[Path, ...]:
    """Paths: a list of a settings file, or text, in which they are separated as those of PATH are."""
    parts = given if isinstance(given, list) else str(given or "").split(os.pathsep)
    return tuple(Path(str(part)) for part in parts if part)


def _log_level(value: str | None) -> LogLevel | None:
    if value is None:
        return None
    for level in get_args(LogLevel):
        if value.lower() == level:
            return level  # type: ignore[no-any-return]
    raise InvalidRequest(f"the log level is {value!r}; expected {', '.join(get_args(LogLevel))}")


def _log_format(value: str) -> LogFormat:
    for format in get_args(LogFormat):
        if value == format:
            return format  # type: ignore[no-any-return]
    raise InvalidRequest(f"the log format is {value!r}; expected {', '.join(get_args(LogFormat))}")
