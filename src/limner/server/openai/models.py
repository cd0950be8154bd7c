"""Models by the names of OpenAI's API: checkpoints of the catalogue, aliases, and OpenAI's own names."""

from typing import Any

from limner.catalogue.catalogue import Entry
from limner.errors import ModelNotFound
from limner.server.state import ServerState

from .errors import InvalidParameter

_OPENAI_NAMES = ("dall-e-", "gpt-image-", "chatgpt-image-")


def find_model(state: ServerState, name: str | None) -> Entry:
    """The checkpoint that a name means. Blocks.

    Names of OpenAI's image models, which many clients have built in, mean the server's model, unless they are
    aliases of another or the setting `openai_names` is off.

    Raises:
        ModelNotFound: There is none.
    """
    settings = state.settings
    if name is None:
        return state.intake.find_model(settings.model)
    try:
        return state.intake.find_model(name)
    except ModelNotFound as error:
        if settings.openai_names and name.startswith(_OPENAI_NAMES):
            return state.intake.find_model(settings.model)
        error.hint = f"{error.hint}; GET /v1/models lists them"
        raise


def find_image_prompter(state: ServerState, entry: Entry) -> Entry:
    """The IP-Adapter by which further images of an edit act, the first one for the family of a checkpoint.

    Raises:
        InvalidParameter: There is none.
    """
    for one in state.catalogue.entries("ip_adapter", entry.family):
        if one.problem is None:
            return one
    raise InvalidParameter(
        "image",
        f"several images are given, and this service has no IP-Adapter for {entry.name} by which those after "
        "the first could be image prompts",
        hint="send one image: it is the one that is edited",
        reason="unsupported_value",
    )


def model_list(state: ServerState) -> dict[str, Any]:
    """All checkpoints and aliases, as OpenAI's list of models. Blocks."""
    entries = [one for one in state.catalogue.entries("checkpoint") if one.problem is None]
    models = {name: model_view(name, one) for one in entries for name in [_name_of(one, entries)]}
    for alias in state.settings.aliases:
        try:
            models.setdefault(alias, model_view(alias, state.intake.find_model(alias)))
        except ModelNotFound:
            continue  # of a model that is not on this machine
    return {"object": "list", "data": list(models.values())}


def model_view(name: str, entry: Entry) -> dict[str, Any]:
    """A model as OpenAI's API shows it.

    Args:
        name: Name that it was asked for by.
    """
    owner = {"shipped": "limner", "hub cache": entry.name.partition("/")[0]}.get(entry.where, "local")
    return {
        "id": name,
        "object": "model",
        "created": entry.stamp.mtime_ns // 10**9,
        "owned_by": owner,
        "family": entry.family,
    }


def _name_of(entry: Entry, entries: list[Entry]) -> str:
    """The name of a checkpoint; its id where others have the same name."""
    same = [one for one in entries if one.name == entry.name]
    return entry.name if len(same) == 1 or entry.variant is None else entry.id
