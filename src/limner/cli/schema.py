"""`limner schema`: the fields of a request, for programs and for readers."""

import json
from typing import Annotated

import typer


def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference page instead of the JSON schema.")
    ] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Print the reference page of the metrics of `limner serve`.")
    ] = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="Print the reference page of the settings of `limner serve`.")
    ] = False,
) -> None:
    """Print the JSON schema of a request."""
    if metrics:
        from limner.service.metrics import metrics_page

        typer.echo(metrics_page(), nl=False)
        return
    if settings:
        from limner.settings.reference import settings_page

        typer.echo(settings_page(), nl=False)
        return
    if markdown:
        from limner.request.describe import reference

        typer.echo(reference(), nl=False)
        return
    from limner.request import GenerationRequest

    typer.echo(json.dumps(GenerationRequest.model_json_schema(), indent=2))
