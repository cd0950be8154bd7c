"""The ledger of a service, for commands that look at it or change it, whether the service runs or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.errors import InvalidRequest

if TYPE_CHECKING:
    from limner.service.ledger.ledger import Ledger
    from limner.service.release import ImageRelease
    from limner.settings.serve import ServeSettings

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Data folder of limner serve. Environment: LIMNER_DATA.", metavar="FOLDER"),
]
AccountOption = Annotated[
    str | None, typer.Option("--account", help="Account. Default: all.", metavar="ACCOUNT")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def service_settings(data: Path | None) -> "ServeSettings":
    """The settings of the service with this data folder, by default as `limner serve` reads them."""
    from limner.settings.serve import ServeSettings

    return ServeSettings.read(data=data)


@contextmanager
def open_ledger(data: Path | None, *, create: bool = False) -> "Iterator[Ledger]":
    """The ledger of a service.

    Args:
        create: Whether to make it if there is none.

    Raises:
        InvalidRequest: There is none: `limner serve` makes it.
        LedgerError: It cannot be opened.
    """
    from limner.service.data_folder import prepare
    from limner.service.ledger.ledger import Ledger
    from limner.service.ledger.writing import ACTING

    settings = service_settings(data)
    file = settings.data / "ledger.sqlite3"
    if settings.ledger is None and create:
        prepare(settings.data)
    elif settings.ledger is None and not file.is_file():
        raise InvalidRequest(
            f"there is no ledger in {settings.data}",
            hint="give the folder of `limner serve` by --data; its first start makes the ledger",
            fields=("data",),
        )
    ledger = Ledger.open(settings.ledger_url)
    acting = ACTING.set("cli")
    try:
        yield ledger
    finally:
        ACTING.reset(acting)
        ledger.close()


def image_release(ledger: "Ledger", data: Path | None) -> "ImageRelease":
    """The images of a service with this data folder, as they leave it."""
    from limner.service.release import ImageRelease, watermark_key
    from limner.service.signing import DeliverySigning
    from limner.service.storage import ImageStore

    settings = service_settings(data)
    store, key = ImageStore.in_folder(settings.data / "pictures"), watermark_key(settings)
    return ImageRelease(store, ledger, key, DeliverySigning.of(settings))
