"""LoRAs that a prompt names: `<lora:name:0.8>`."""

import math

from limner.errors import InvalidRequest
from limner.prompts.networks import LORA_TAGS, ExtraNetwork, take_networks

from .fields import MAX_LORAS
from .parts import Lora
from .request import GenerationRequest


def with_loras(request: GenerationRequest) -> GenerationRequest:
    """The request with the `<lora:…>` tags of its prompt moved to its `loras`.

    Raises:
        InvalidRequest: A tag whose weights are no numbers, or too many tags.
    """
    if request.prompt_syntax == "literal":
        return request
    prompt, tags = take_networks(request.prompt, LORA_TAGS)
    if not tags:
        return request
    loras = (*request.loras, *map(_lora, tags))
    if len(loras) > MAX_LORAS:
        raise InvalidRequest(
            f"the request names {len(loras)} LoRAs; expected at most {MAX_LORAS}", fields=("prompt", "loras")
        )
    return request.model_copy(update={"prompt": prompt, "loras": loras})


def _lora(tag: ExtraNetwork) -> Lora:
    """AUTOMATIC1111's order: name, weight for the text encoder, weight for the U-Net if that is another."""
    name, *numbers = tag.positional
    try:
        if len(numbers) > 2 or tag.named.keys() - {"te", "unet"}:
            raise ValueError
        weights = [float(number) for number in numbers] or [1.0]
        text = float(tag.named.get("te", weights[0]))
        unet = float(tag.named.get("unet", weights[1] if len(weights) > 1 else text))
        if not (math.isfinite(text) and math.isfinite(unet)):
            raise ValueError
    except ValueError:
        raise InvalidRequest(
            f"<{tag.kind}:{':'.join(tag.items)}> cannot be read",
            hint="expected <lora:name>, <lora:name:0.8> or <lora:name:text weight:U-Net weight>",
        ) from None
    return Lora(name=name, weight=unet, text_weight=None if text == unet else text)
