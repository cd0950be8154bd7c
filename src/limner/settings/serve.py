"""Settings of `limner serve`: flags over environment variables `LIMNER_*` over `limner.toml`.

A setting has one name. `lease_seconds` is the key in the file, `LIMNER_LEASE_SECONDS` in the environment,
and `--lease-seconds`, or `--set lease_seconds=…`, on the command line. In the environment and on the command
line, lists are separated by commas (paths as in PATH), and tables are written `name=value,name=value`.
"""

import difflib
import ipaddress
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from limner.errors import InvalidRequest

from . import (
    CONFIG_FILE,
    CONFIG_VARIABLE,
    VARIABLES,
    LogFormat,
    LogLevel,
    default_cache_dir,
    default_data_dir,
    read_file,
    settings_file,
)
from .values import (
    DEFAULT_LIMITS,
    LIMIT_NAMES,
    QUOTA_NAMES,
    Limits,
    Names,
    Paths,
    Prices,
    PromptLog,
    QuotaTable,
    Words,
    check_base_url,
    check_origins,
    lower_case,
)

_LOG = logging.getLogger("limner.settings")

Group = Literal[
    "Address",
    "Data",
    "Models and devices",
    "Workers",
    "Limits",
    "Access",
    "Safety",
    "Storage and retention",
    "Audit",
    "Webhooks",
    "Cost and observation",
]
GROUPS: tuple[Group, ...] = get_args(Group)
"""Headings of the reference, in its order."""


def _setting(group: Group, default: Any, description: str, *, shown: str = "", **more: Any) -> Any:
    """A field under a heading of the reference.

    Args:
        shown: Default as the reference shows it, where it is not a plain value.
    """
    extra: JsonDict = {"group": group, "shown": shown}
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=extra, **more)
    return Field(default, description=description, json_schema_extra=extra, **more)


class ServeSettings(BaseSettings):
    """Settings of the service.

    The constructor takes values alone; `read` also looks at the environment and at `limner.toml`.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="LIMNER_", validate_default=False, hide_input_in_errors=True
    )

    host: str = _setting(
        "Address",
        "127.0.0.1",
        "Address to listen on. Anything but loopback needs at least one key: `limner keys create`.",
    )
    port: int = _setting("Address", 8188, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    public_url: Annotated[str | None, AfterValidator(check_base_url)] = _setting(
        "Address",
        None,
        "URL under which clients reach the service, for links in answers and webhooks, such as "
        "`https://images.example.org`. Its host is an allowed one.",
        shown="the address of each request",
    )
    allowed_hosts: Words = _setting(
        "Address",
        (),
        "Names accepted in the Host header besides loopback's, the address that is listened on and that of "
        "`public_url`; `*.example.org` accepts all names below. Others are refused, against DNS rebinding.",
    )
    cors_origins: Annotated[Words, AfterValidator(check_origins)] = _setting(
        "Address", (), "Origins of web pages that may call the service from a browser; `*` is any."
    )
    trusted_proxies: Words = _setting(
        "Address",
        (),
        "Addresses of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto headers are believed.",
    )
    studio: bool = _setting(
        "Address", True, "Whether the studio, the application for browsers, is served at `/`."
    )

    data: Path = _setting(
        "Data",
        default_data_dir,
        "Folder of the ledger, images, uploads, signing key and logs. One server at a time uses it.",
        shown="`limner` in `XDG_DATA_HOME`, or in `~/.local/share`",
    )
    ledger: SecretStr | None = _setting(
        "Data",
        None,
        "URL of the ledger's database, such as `postgresql+psycopg://user:password@host/limner`. Secret.",
        shown="`ledger.sqlite3` in `data`",
    )
    cache_dir: Path = _setting(
        "Data",
        default_cache_dir,
        "Folder of what can be computed again.",
        shown="`limner` in `XDG_CACHE_HOME`, or in `~/.cache`",
    )

    models: Words = _setting(
        "Models and devices",
        ("picturebook",),
        "Models that workers load at the start and keep in memory as long as it suffices. Names as "
        "`limner models` lists them. Others that are on this machine are loaded when a request names them.",
        min_length=1,
    )
    default_model: str | None = _setting(
        "Models and devices", None, "Model of requests that name none.", shown="the first of `models`"
    )
    aliases: Names = _setting(
        "Models and devices",
        dict,
        "Other names of models, as a table: name -> model.",
    )
    openai_names: bool = _setting(
        "Models and devices",
        True,
        "Whether the names of OpenAI's image models, such as `dall-e-3` and `gpt-image-1`, mean the default "
        "model in OpenAI's API, where they are no aliases.",
    )
    model_dirs: Paths = _setting("Models and devices", (), "Folders of checkpoints, VAEs and upscalers.")
    lora_dirs: Paths = _setting("Models and devices", (), "Folders of LoRA files.")
    embedding_dirs: Paths = _setting("Models and devices", (), "Folders of textual inversions.")
    control_dirs: Paths = _setting("Models and devices", (), "Folders of ControlNets and T2I-Adapters.")
    image_prompt_dirs: Paths = _setting(
        "Models and devices", (), "Folders of IP-Adapters and image encoders."
    )
    civitai_token: SecretStr | None = _setting(
        "Models and devices",
        None,
        "API key of an account of Civitai, for `limner models pull civitai:NUMBER`. Secret.",
    )
    civitai_url: Annotated[str, AfterValidator(check_base_url)] = _setting(
        "Models and devices", "https://civitai.com", "Address of Civitai or of a mirror."
    )
    wildcards_dirs: Paths = _setting("Models and devices", (), "Folders of files for wildcards.")
    styles_files: Paths = _setting("Models and devices", (), "Files of styles.")
    devices: Words = _setting(
        "Models and devices",
        ("auto",),
        "Devices, with a worker process each: `cpu`, `cuda`, `cuda:1` …; `auto` is every CUDA device, else "
        "`cpu`.",
        min_length=1,
    )
    precision: str = _setting(
        "Models and devices", "auto", "Precision of the networks: `auto`, `fp32`, `fp16` or `bf16`."
    )
    backend: str = _setting(
        "Models and devices", "torch", "Backend that runs the networks: `torch` or `openvino`."
    )

    lease_seconds: float = _setting(
        "Workers",
        30.0,
        "Seconds after which the jobs of a worker that no longer answers go to another. Renewed every third.",
        ge=1,
        le=3600,
    )
    drain_seconds: float = _setting(
        "Workers",
        30.0,
        "Seconds that running images have to finish when the service is stopped; after that they go back "
        "into the queue.",
        ge=0,
    )
    watchdog_seconds: float = _setting(
        "Workers",
        300.0,
        "Seconds without a step after which a worker with running images counts as hung and is replaced.",
        gt=0,
    )
    previews: bool = _setting("Workers", True, "Whether running jobs send previews to who watches them.")
    previews_per_second: float = _setting("Workers", 5.0, "Most previews of a job in a second.", gt=0, le=30)
    preview_side: int = _setting("Workers", 256, "Longest side of a preview in pixels.", ge=16, le=1024)

    max_queued_jobs: int = _setting(
        "Limits",
        2000,
        "Number of jobs that may wait in all; further ones are answered with 429 and Retry-After.",
        ge=1,
    )
    limits: Limits = _setting(
        "Limits",
        DEFAULT_LIMITS.copy,
        "What one request may ask, as a table: " + ", ".join(f"`{name}`" for name in LIMIT_NAMES) + ". "
        "`max_work` counts width x height x steps x images. Those that are not given keep their defaults. "
        "Accounts and keys can have limits of their own.",
        shown="`" + ",".join(f"{name}={value}" for name, value in DEFAULT_LIMITS.items()) + "`",
    )
    quotas: QuotaTable = _setting(
        "Limits",
        dict,
        "Quotas of accounts that have none of their own, as a table: "
        + ", ".join(f"`{name}`" for name in QUOTA_NAMES)
        + ".",
    )
    max_body_bytes: ByteSize = _setting(
        "Limits", ByteSize(64 << 20), "Largest body of a request, such as `64MiB`.", shown="`64MiB`", gt=0
    )
    max_image_pixels: int = _setting(
        "Limits", 40_000_000, "Pixels of the largest input image, checked before it is decoded.", gt=0
    )
    body_timeout_seconds: float = _setting(
        "Limits", 60.0, "Seconds in which a request's body must have arrived.", gt=0
    )
    wait_seconds: float = _setting(
        "Limits",
        3600.0,
        "Longest time that a call which waits for its images (OpenAI, AUTOMATIC1111) is kept open.",
        gt=0,
    )
    max_event_streams: int = _setting(
        "Limits", 1000, "Number of event streams that may be open at once.", ge=1
    )
    max_event_streams_per_account: int = _setting(
        "Limits", 500, "Number of event streams that one account may have open at once.", ge=1
    )

    require_key: bool = _setting(
        "Access",
        False,
        "Whether callers on loopback need a key, too. They do as soon as the first key exists.",
    )
    session_days: float = _setting(
        "Access",
        30.0,
        "Days that a browser stays signed in to the studio without being used. A session ends with its key.",
        gt=0,
        le=365,
    )
    oidc_issuer: str | None = _setting(
        "Access",
        None,
        "Issuer of OpenID Connect tokens that are accepted besides keys. Needs `limner[oidc]`.",
    )
    oidc_audience: str | None = _setting("Access", None, "Audience that OpenID Connect tokens must name.")
    oidc_account_claim: str = _setting(
        "Access", "sub", "Claim of an OpenID Connect token that names the account."
    )
    oidc_operators: Words = _setting("Access", (), "Values of that claim that are operators.")
    oidc_accounts: Names = _setting(
        "Access",
        dict,
        "Accounts of values of that claim, as a table: value -> account. Others have accounts of their own, "
        "whose names begin with `oidc`.",
    )

    safety: str | None = _setting(
        "Safety",
        None,
        "Policy that requests and images must pass: `off`, `standard`, `strict`, or the path of a policy "
        "file. Accounts and keys can have another level. The rules against sexual content with minors hold "
        "in each. It must be given to serve models other than the shipped one at an address that other "
        "machines reach.",
        shown="`standard`, for prompts alone",
    )

    keep_withheld_days: float = _setting(
        "Safety",
        7.0,
        "Days that an image which the policy blocks, or a moderator takes down, is kept for its review. No "
        "caller gets it; operators open it in the moderation queue. 0: what the policy blocks is not stored, "
        "and what is taken down is deleted.",
        ge=0,
    )
    watermark: bool = _setting(
        "Safety",
        True,
        "Whether delivered images of at least 128 pixels a side have an invisible watermark. The stored "
        "masters keep their exact pixels.",
    )
    watermark_key: SecretStr | None = _setting(
        "Safety",
        None,
        "Secret that watermarks are made with, of at least 16 characters. Without one everybody can find, "
        "forge and remove them. Secret.",
        shown="the file `watermark.key` in `data`; else the published key",
        min_length=16,
    )
    sign: bool = _setting(
        "Safety",
        False,
        "Whether delivered images are signed: a C2PA manifest in the file says what made it, and from what. "
        "Needs `limner[provenance]`.",
    )
    sign_prompt: bool = _setting("Safety", False, "Whether the manifests say the prompt.")
    signing_certificate: Path | None = _setting(
        "Safety",
        None,
        "PEM file of the certificate chain that images are signed with, the signer's own certificate first.",
        shown="a development CA's, which is made in the folder `signing` of `data`",
    )
    signing_key: Path | None = _setting("Safety", None, "PEM file of its private key, which is unencrypted.")
    timestamp_url: str | None = _setting(
        "Safety",
        None,
        "URL of a time-stamp authority that is asked for each signature. Where it does not answer, images "
        "are signed without a time stamp, and say so.",
        shown="none is asked",
        pattern="^https?://",
    )
    trust_anchors: Paths = _setting(
        "Safety",
        (),
        "PEM files of certificates that vouch for the signers of input images.",
        shown="that of the development CA",
    )

    keep_images_days: float | None = _setting(
        "Storage and retention", None, "Days after which images are deleted.", shown="kept", gt=0
    )
    keep_uploads_days: float | None = _setting(
        "Storage and retention",
        None,
        "Days after which uploads that no waiting job needs are deleted.",
        shown="kept",
        gt=0,
    )
    keep_jobs_days: float | None = _setting(
        "Storage and retention",
        None,
        "Days after which ended jobs leave the ledger; their usage stays.",
        shown="kept",
        gt=0,
    )
    trash_days: float = _setting(
        "Storage and retention", 30.0, "Days after which deleted images leave the trash for good.", gt=0
    )
    keep_steps: bool = _setting(
        "Storage and retention",
        True,
        "Whether small previews of the steps of each image are kept beside its thumbnail: some kilobytes.",
    )
    min_free_bytes: ByteSize = _setting(
        "Storage and retention",
        ByteSize(256 << 20),
        "Free bytes of the disk below which the service is not ready and takes no jobs, such as `256MiB`.",
        shown="`256MiB`",
        ge=0,
    )

    prompt_log: PromptLog = _setting(
        "Audit",
        "hashed",
        "What the audit log keeps of prompts: `none`; `hashed`, so that a prompt can be compared but not "
        "read; `encrypted`, readable with the key in `data`; `plain`, readable in the ledger. Erasing an "
        "account makes its prompts unreadable, and the log still verifies.",
    )
    keep_prompts_days: float | None = _setting(
        "Audit",
        None,
        "Days after which prompts in the audit log become unreadable; hashed and encrypted ones by months.",
        shown="kept",
        gt=0,
    )
    audit_checkpoints: Path | None = _setting(
        "Audit",
        None,
        "Folder that signed checkpoints of the audit log are copied to, once a minute if it has grown. Best "
        "on another machine: with a copy, nobody can cut off or exchange the log unnoticed.",
        shown="not copied",
    )

    webhook_hosts: Words = _setting(
        "Webhooks",
        (),
        "Hosts that webhooks may be sent to, such as `hooks.example.org` or `localhost:9000`; "
        "`*.example.org` allows all names below. None: webhooks are refused.",
    )
    webhook_secret: SecretStr | None = _setting(
        "Webhooks",
        None,
        "Secret that signs webhooks of requests without one of their own. Secret.",
        shown="derived from the signing key in `data`",
    )
    webhook_attempts: int = _setting(
        "Webhooks", 10, "Number of times that a delivery is tried, over about a day.", ge=1, le=50
    )
    webhook_timeout_seconds: float = _setting(
        "Webhooks", 10.0, "Seconds that a receiver has to answer.", gt=0, le=120
    )

    prices: Prices = _setting(
        "Cost and observation",
        dict,
        "Price of a device second, as a table: device -> price. `cuda` stands for all CUDA devices that have "
        "no entry such as `cuda:1`.",
    )
    currency: str = _setting("Cost and observation", "USD", "Currency of the prices.", pattern=r"^[A-Z]{3}$")
    public_metrics: bool = _setting(
        "Cost and observation",
        False,
        "Whether `/metrics` needs no key. It needs none on loopback either, and else an operator's.",
    )
    telemetry: bool = _setting(
        "Cost and observation",
        False,
        "Whether traces are sent by OpenTelemetry, whose own `OTEL_*` variables say where. Needs "
        "`limner[telemetry]`.",
    )
    log_level: Annotated[LogLevel, BeforeValidator(lower_case)] = _setting(
        "Cost and observation", "info", "Least severity of events that are logged."
    )
    log_format: Annotated[LogFormat, BeforeValidator(lower_case)] = _setting(
        "Cost and observation", "text", "`text` for people, or `json`: one object a line."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.oidc_issuer is not None and self.oidc_audience is None:
            raise ValueError("oidc_issuer needs oidc_audience: else tokens made for others would be accepted")
        if (self.signing_certificate is None) != (self.signing_key is None):
            raise ValueError("signing_certificate and signing_key go together: set both, or none")
        return self

    @classmethod
    def read(
        cls,
        environment: Mapping[str, str] = os.environ,
        *,
        config: Path | None = None,
        **flags: Any,
    ) -> Self:
        """The settings of an environment. Empty variables count as unset.

        Args:
            config: Settings file; by default what `LIMNER_CONFIG` names, else `limner.toml` in the current
                folder where there is one.
            flags: Take the place of what the environment and the file say; None is as if not given. Text is
                read as in the environment.

        Raises:
            InvalidRequest: A value that a setting does not take, naming where it was given; an unknown name
                in the file or among the flags. An unknown variable is logged as a warning.
        """
        file = settings_file(environment, config) or Path(CONFIG_FILE)
        stored = read_file(environment, config)
        variables = _Environment(cls, environment)()
        given = {name: value for name, value in flags.items() if value is not None}
        for source, names in ((f"{file}: ", stored), ("--", given)):
            for name in names:
                if name not in cls.model_fields:
                    raise _unknown(source + (name if source != "--" else name.replace("_", "-")), name)
        try:
            return cls(**{**stored, **variables, **given})
        except ValidationError as error:
            raise _invalid(error, file, stored, variables, given) from None

    @property
    def ledger_url(self) -> str:
        """URL of the ledger's database. Holds a password where the setting does."""
        if self.ledger is not None:
            return self.ledger.get_secret_value()
        return f"sqlite:///{(self.data / 'ledger.sqlite3').absolute()}"

    @property
    def pulled_models(self) -> Path:
        """Folder of single files that `limner models pull` has fetched, with a folder for each kind."""
        return self.data / "models"

    @property
    def model(self) -> str:
        """Model of requests that name none."""
        return self.default_model or self.models[0]

    @property
    def safety_policy(self) -> str:
        """Level or path of the policy that requests must pass."""
        return self.safety or "standard"

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host.lower() in ("localhost", "ip6-localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def price_of(self, device: str) -> float:
        """Price of a second of a device such as "cuda:1": its own, else that of its kind, else 0."""
        return self.prices.get(device, self.prices.get(device.partition(":")[0], 0.0))

    def to_json(self) -> str:
        """All settings as JSON, secrets included, for another process of the service: `from_json`."""
        values = self.model_dump(mode="json")
        for name in SECRETS:
            if name in values and (secret := getattr(self, name)) is not None:
                values[name] = secret.get_secret_value()
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The settings that `to_json` wrote."""
        return cls(**json.loads(text))

    def shown(self) -> dict[str, Any]:
        """All settings as plain data that can be printed: secrets are asterisks."""
        return self.model_dump(mode="json")


SECRETS = tuple(
    name for name, one in ServeSettings.model_fields.items() if "SecretStr" in str(one.annotation)
)
"""Settings that are never printed."""


def variable(name: str) -> str:
    """The environment variable of a setting of the service."""
    return VARIABLES.get(name, f"LIMNER_{name.upper()}")


class _Environment(EnvSettingsSource):
    """Reads the variables of a mapping."""

    def __init__(self, settings: type[ServeSettings], environment: Mapping[str, str]) -> None:
        own = {variable(name): f"LIMNER_{name.upper()}" for name in settings.model_fields}
        known = {*own, *VARIABLES.values(), CONFIG_VARIABLE}
        self._given: dict[str, str] = {}
        for name, value in environment.items():
            if name in own and value and not _of_kubernetes(name, value):
                self._given[own[name].lower()] = value
            elif name.startswith("LIMNER_") and name not in known and not _of_kubernetes(name, value):
                near = difflib.get_close_matches(name, known, 1)
                _LOG.warning(
                    "no setting has this variable", extra={"fields": {"variable": name, "nearest": near}}
                )
        super().__init__(settings, case_sensitive=False)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._given


def _of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes made a variable: for a service named `limner` it sets LIMNER_PORT to "tcp://…"."""
    return bool(re.match(r"LIMNER_(SERVICE_|PORT_\d)", name)) or value.startswith(("tcp://", "udp://"))


def _unknown(place: str, name: str) -> InvalidRequest:
    near = difflib.get_close_matches(name, ServeSettings.model_fields, 1)
    hint = f"the nearest is {near[0]}" if near else "docs/reference/settings.md lists them"
    return InvalidRequest(f"{place}: there is no such setting", hint=hint, fields=(name,))


def _invalid(error: ValidationError, file: Path, *sources: Mapping[str, Any]) -> InvalidRequest:
    """What was given where, and what was expected; without the value of a secret."""
    stored, variables, given = sources
    faults, names = [], []
    for fault in error.errors(include_url=False, include_context=False):
        name = str(fault["loc"][0]) if fault["loc"] else ""
        reason = fault["msg"].removeprefix("Value error, ")
        if not name:
            faults.append(reason)
            continue
        if name in given:
            place, value = f"--{name.replace('_', '-')}", given[name]
        elif name in variables:
            place, value = variable(name), variables[name]
        else:
            place, value = f"{file}: {name}", stored.get(name)
        within = "".join(f".{part}" for part in fault["loc"][1:])
        shown = "" if name in SECRETS else f" is {value!r}"
        faults.append(f"{place}{within}{shown}: {reason[:1].lower()}{reason[1:]}")
        names.append(name)
    return InvalidRequest(
        "; ".join(faults),
        hint="docs/reference/settings.md lists the settings",
        fields=tuple(dict.fromkeys(names)),
    )
