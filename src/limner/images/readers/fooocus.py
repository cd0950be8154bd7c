"""Reads Fooocus' own scheme of metadata. Its other scheme is that of AUTOMATIC1111."""

import ast
from collections.abc import Collection
from typing import Any

from .base import ReadRequest, Texts, Values, hash_digits, without_suffix

NAME = "Fooocus"
_IDLE = {"created_by", "metadata_scheme", "version", "refiner_model_hash", "performance"}
_IDLE |= {"prompt", "negative_prompt", "styles", "prompt_expansion"}  # what the whole prompts were made of


def matches(texts: Texts) -> bool:
    given = texts.json(texts.parameters)
    return "base_model" in given or given.get("metadata_scheme") == "fooocus"


def read(texts: Texts, overriding: Collection[str] = ()) -> ReadRequest:
    """The request, with the prompts that Fooocus made of the user's, its styles and its expansion.

    Raises:
        InvalidPicture: a number in it is none.
    """
    values = Values(texts.json(texts.parameters), texts, overriding)
    given = texts.json(texts.parameters)
    for key, whole, name in (
        ("prompt", "full_prompt", "prompt"),
        ("negative_prompt", "full_negative_prompt", "negative_prompt"),
    ):
        said = values.take(whole) or given.get(key, "")
        values.fields[name] = ", ".join(filter(None, map(str, said))) if isinstance(said, list) else str(said)
    if len(given.get("full_prompt") or ()) > 1:
        values.warn("Fooocus encodes each part of its prompt by itself: they are one text here")
    values.seed("seed")
    values.number("steps", "steps", int)
    values.number("guidance_scale", "guidance_scale")
    values.number("clip_skip", "clip_skip", int)
    resolution = _tuple(values.take("resolution"))
    if len(resolution) == 2:
        values.fields["width"], values.fields["height"] = resolution
    values.samplers(values.take("sampler"), values.take("scheduler"))
    loras = [lora for lora in values.take("loras") or [] if len(lora) > 1]
    values.loras((str(lora[0]), lora[1], None) for lora in loras)
    values.hashes = {without_suffix(str(lora[0])): hash_digits(lora[2]) for lora in loras if len(lora) > 2}
    values.fields["noise"] = "cpu"
    values.model(values.take("base_model"), values.take("base_model_hash"))
    refiner, switch = values.take("refiner_model"), values.take("refiner_switch")
    if refiner not in (None, "None", ""):
        values.needs(
            "`refiner`, `refiner_start`",
            f"its refiner {refiner}, from {switch} on, is not looked for",
            {"refiner_model": refiner, "refiner_switch": switch},
        )
    if values.take("vae") not in (None, "None", "Default (model)"):
        values.needs("`vae`", f"its autoencoder {given['vae']} is not looked for", {"vae": given["vae"]})
    return values.request(_IDLE)


def _tuple(text: Any) -> tuple[int, ...]:
    """Numbers of a text such as "(1024, 1024)"."""
    try:
        value = ast.literal_eval(text) if isinstance(text, str) else text
        return tuple(int(number) for number in value)
    except (TypeError, ValueError, SyntaxError):
        return ()
