"""`limner webhooks`: what receivers of a service's webhooks need to know."""

from typing import Annotated

import typer

from . import terminal
from .opening import DataOption, open_ledger, service_settings

app = typer.Typer(
    help="Print or renew the secret that webhooks are signed with.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def webhooks() -> None:
    """Print or renew the secret that webhooks are signed with."""


@app.command()
def secret(
    new: Annotated[
        bool,
        typer.Option(
            "--new", help="Make a new signing key first. Links and webhooks signed before do not hold."
        ),
    ] = False,
    data: DataOption = None,
) -> None:
    """Print the secret that signs webhooks of requests without one of their own.

    Receivers check the header webhook-signature with it, as https://www.standardwebhooks.com describes.
    """
    from limner.service.secret import new_signing_key, signing_key
    from limner.service.webhooks import webhook_secret

    settings = service_settings(data)
    with open_ledger(data) as ledger:
        if new:
            key = new_signing_key(settings.data)
            terminal.note("a new signing key is made; start the service again")
        else:
            key = signing_key(settings.data, create=ledger.last_event() == 0)
    if new and settings.webhook_secret is not None:
        terminal.warning("webhooks are signed with the secret of the settings, not with one of the new key")
    typer.echo(webhook_secret(settings, key))
