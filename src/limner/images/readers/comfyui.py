"""Reads the graph of ComfyUI: the chunk `prompt` of a PNG, or EXIF's Model in WebP, in the format of its API.

The sampler nodes before the saved image are found; one that goes on from the latents of another, scaled up,
is the hires pass. ComfyUI draws noise on the CPU.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from limner.errors import InvalidPicture

from .base import ReadRequest, Texts, Values, without_suffix

NAME = "ComfyUI"
_OUTPUTS = ("SaveImage", "PreviewImage", "SaveImageWebsocket")
_SAMPLERS = ("KSampler", "KSamplerAdvanced")
_EMPTY_LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage")
_ENCODERS = ("CLIPTextEncode", "CLIPTextEncodeSDXL")
_LATENT_SCALERS = ("LatentUpscale", "LatentUpscaleBy")
_METHODS = {"nearest-exact": "latent_nearest_exact", "bilinear": "latent", "bicubic": "latent_bicubic"}
_IDLE = {
    "VAEDecode",
    "VAEDecodeTiled",
    "CheckpointLoaderSimple",
    "CheckpointLoader",
    "UNETLoader",
    "CLIPLoader",
}
_IDLE |= {*_OUTPUTS, "PrimitiveNode", "Note", "Reroute", "KSamplerSelect"}

_EMBEDDING = re.compile(r"embedding:([^\s,():]+)")

Graph = Mapping[str, Mapping[str, Any]]


def matches(texts: Texts) -> bool:
    """Whether there is a graph, or the editor's workflow, which alone does not suffice."""
    return bool(_graph(texts)) or bool(texts.json(texts.info.get("workflow")))


def read(texts: Texts, overriding: Collection[str] = ()) -> ReadRequest:
    """The request of a graph.

    Raises:
        InvalidPicture: a workflow without a graph, or a graph without a node that samples.
    """
    graph = _graph(texts)
    if not graph:
        raise InvalidPicture(
            f"{texts.name} holds a workflow of ComfyUI's editor, but not what it ran",
            hint="give the prompt and options yourself, or save the image from ComfyUI with its metadata",
        )
    return _Graph(graph, texts, overriding).read()


def _graph(texts: Texts) -> Graph:
    exif = [value.partition(":")[2] for value in texts.exif.values() if value.startswith("prompt:")]
    nodes = texts.json(texts.info.get("prompt"), *exif)
    inner = nodes.get("prompt")
    nodes = inner if isinstance(inner, dict) else nodes
    found = {
        key: node
        for key, node in nodes.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    return found if found and all("class_type" in node for node in found.values()) else {}


class _Graph:
    """A graph on its way to a request."""

    def __init__(self, graph: Graph, texts: Texts, overriding: Collection[str]) -> None:
        self._graph, self._texts = graph, texts
        self._values = Values({}, texts, overriding)
        self._read: set[str] = set()  # nodes that are accounted for

    def read(self) -> ReadRequest:
        values = self._values
        last = self._last_sampler()
        first = self._before(last)
        self._pass(first or last)
        if first is not None:
            self._hires_pass(first, last)
        values.fields["noise"] = "cpu"
        values.fields["emphasis"] = "no_norm"
        prompts = [values.fields.get(name, "") for name in ("prompt", "negative_prompt")]
        if any("(" in prompt.replace(r"\(", "") for prompt in prompts):
            values.warn("ComfyUI weights words otherwise, so those in brackets may count more or less")
        left = {
            key: node
            for key, node in self._graph.items()
            if key not in self._read and node["class_type"] not in _IDLE
        }
        if left:
            kinds = sorted({node["class_type"] for node in left.values()})
            said = {f"{node['class_type']} (node {key})": node["inputs"] for key, node in left.items()}
            values.warn(f"nodes that are not taken over: {', '.join(kinds)}", said)
        return values.request()

    def _last_sampler(self) -> str:
        """The sampler node before the output that is reached last."""
        outputs = [key for key, node in self._graph.items() if node["class_type"] in _OUTPUTS]
        samplers = [key for key, node in self._graph.items() if node["class_type"] in _SAMPLERS]
        chains = [self._upstream(output, _SAMPLERS) for output in outputs] + [samplers[-1:]]
        longest = max(chains, key=len)
        if len({chain[0] for chain in chains[:-1] if chain}) > 1:
            self._values.warn("its graph saved several images: the one with the most passes is taken")
        if not longest:
            kinds = ", ".join(sorted({node["class_type"] for node in self._graph.values()})[:8])
            raise InvalidPicture(
                f"{self._texts.name} holds a graph of ComfyUI without a KSampler; it has {kinds}",
                hint="give the prompt and options yourself",
            )
        return longest[0]

    def _upstream(self, key: str, kinds: Collection[str]) -> list[str]:
        """Nodes of some kinds that a node depends on by images, latents, or samples; the nearest first."""
        found, todo, seen = [], [key], set[str]()
        while todo:
            node = todo.pop(0)
            if node in seen or node not in self._graph:
                continue
            seen.add(node)
            if node != key and self._graph[node]["class_type"] in kinds:
                found.append(node)
            inputs = self._graph[node]["inputs"]
            follow = (
                "images",
                "image",
                "samples",
                "latent_image",
                "pixels",
                "latent",
                "source",
                "destination",
            )
            todo += [_link(inputs[name]) for name in follow if name in inputs and _link(inputs[name])]
        return found

    def _before(self, sampler: str) -> str | None:
        """The sampler node whose result another goes on from; None if there is none."""
        found = self._upstream(sampler, _SAMPLERS)
        return found[0] if found else None

    def _pass(self, key: str) -> None:
        """Take the first pass over."""
        values, inputs = self._values, self._inputs(key)
        sampled = Values(inputs, self._texts, ())
        advanced = self._graph[key]["class_type"] == "KSamplerAdvanced"
        sampled.seed("noise_seed" if advanced else "seed")
        sampled.number("steps", "steps", int)
        sampled.number("cfg", "guidance_scale")
        values.fields |= sampled.fields
        values.samplers(_text(inputs.get("sampler_name")), _text(inputs.get("scheduler")))
        values.fields["prompt"] = self._prompt(_link(inputs.get("positive")))
        values.fields["negative_prompt"] = self._prompt(_link(inputs.get("negative")))
        self._model(_link(inputs.get("model")))
        latents = self._upstream(key, _EMPTY_LATENTS)
        if latents:
            empty = Values(self._inputs(latents[0]), self._texts, ())
            empty.number("width", "width", int)
            empty.number("height", "height", int)
            values.fields |= empty.fields
        else:
            strength = inputs.get("denoise", 1.0)
            if isinstance(strength, int | float) and strength < 1.0 and not advanced:
                values.fields["strength"] = float(strength)
            values.needs("`image`", "it began with an image that it does not hold")
        if advanced and (
            inputs.get("start_at_step") or inputs.get("end_at_step", 10_000) < inputs.get("steps", 0)
        ):
            values.warn(
                f"its sampler ran the steps {inputs.get('start_at_step')} to {inputs.get('end_at_step')} of "
                f"{inputs.get('steps')}: all are run",
                {name: inputs.get(name) for name in ("start_at_step", "end_at_step")},
            )

    def _hires_pass(self, first: str, last: str) -> None:
        values, inputs = self._values, self._inputs(last)
        scalers = self._upstream(last, _LATENT_SCALERS)
        if not scalers or self._graph[last]["class_type"] != "KSampler":
            values.warn(
                "a second sampler goes on from the first one: it is not taken over",
                {f"{self._graph[last]['class_type']} (node {last})": self._graph[last]["inputs"]},
            )
            return
        scaler = self._inputs(scalers[0])
        scaled = Values(scaler, self._texts, ())
        for key, name, kind in (
            ("width", "hires_width", int),
            ("height", "hires_height", int),
            ("scale_by", "hires_scale", float),
        ):
            scaled.number(key, name, kind)
        second = Values(inputs, self._texts, ())
        second.number("denoise", "hires_strength")
        steps, strength = inputs.get("steps"), second.fields.get("hires_strength", 1.0)
        if isinstance(steps, int):
            second.fields["hires_steps"] = max(1, round(steps * strength) if strength < 1.0 else steps)
        values.fields |= {name: value for name, value in (scaled.fields | second.fields).items() if value}
        method = str(scaler.get("upscale_method"))
        if method in _METHODS:
            values.fields["hires_upscaler"] = _METHODS[method]
        else:
            values.warn(
                f"its latents were scaled by {method}, and are by bilinear interpolation",
                {"upscale_method": method},
            )
        names = Values({}, self._texts, ())
        names.samplers(_text(inputs.get("sampler_name")), _text(inputs.get("scheduler")))
        values.join(names, "hires_")
        for ours, name in names.fields.items():
            if values.fields.get(ours) != name:
                values.fields[f"hires_{ours}"] = name
        for link, name in (("positive", "prompt"), ("negative", "negative_prompt")):
            prompt = self._prompt(_link(inputs.get(link)))
            if prompt != values.fields[name]:
                values.fields[f"hires_{name}"] = prompt
        if inputs.get("cfg") != self._graph[first]["inputs"].get("cfg"):
            values.warn(
                f"its second pass has the guidance scale {inputs.get('cfg')}: both have the first one's",
                {"cfg (second pass)": inputs.get("cfg")},
            )
        loaded = self._models(_link(inputs.get("model")))
        if loaded and loaded != self._models(_link(self._graph[first]["inputs"].get("model"))):
            values.warn(
                f"its second pass has another model, {', '.join(loaded)}: both passes have one model",
                {"ckpt_name (second pass)": ", ".join(loaded)},
            )

    def _inputs(self, key: str) -> Mapping[str, Any]:
        """The inputs of a node, which thereby is accounted for; links to values are followed."""
        self._read.add(key)
        inputs = self._graph[key]["inputs"]
        return {name: self._value(value) for name, value in inputs.items()}

    def _value(self, value: Any) -> Any:
        """A value behind links to nodes that hold one; a link to any other node as it is."""
        for _ in range(len(self._graph)):
            node = self._graph.get(_link(value))
            if node is None:
                return value
            held = [
                node["inputs"][name]
                for name in ("value", "text", "string", "int", "float", "seed")
                if name in node["inputs"]
            ]
            if len(held) != 1 or node["class_type"] in (*_ENCODERS, *_SAMPLERS):
                return value
            self._read.add(_link(value))
            value = held[0]
        return value

    def _prompt(self, key: str) -> str:
        """The text behind a conditioning."""
        seen = set[str]()
        while key in self._graph and key not in seen:
            seen.add(key)
            node = self._graph[key]
            if node["class_type"] in _ENCODERS:
                inputs = self._inputs(key)
                self._text_encoder(_link(inputs.get("clip")))
                text = str(inputs.get("text", inputs.get("text_g", "")))
                if "text_l" in inputs and inputs["text_l"] != text:
                    self._values.warn(
                        "it gives each text encoder a prompt of its own: the first is taken",
                        {"text_l": inputs["text_l"]},
                    )
                return _EMBEDDING.sub(lambda found: without_suffix(found[1]), text).strip()
            key = next((_link(value) for value in node["inputs"].values() if _link(value)), "")
        return ""

    def _text_encoder(self, key: str) -> None:
        """Take over which layer of the text encoder is used."""
        for node in self._chain(key, "clip"):
            if self._graph[node]["class_type"] == "CLIPSetLastLayer":
                layer = self._inputs(node).get("stop_at_clip_layer", -1)
                if isinstance(layer, int):
                    self._values.fields["clip_skip"] = -layer

    def _model(self, key: str) -> None:
        """Take over the adapters between a checkpoint and a sampler."""
        loras = []
        for node in self._chain(key, "model"):
            inputs = self._graph[node]["inputs"]
            if self._graph[node]["class_type"] in ("LoraLoader", "LoraLoaderModelOnly"):
                self._read.add(node)
                weight = self._value(inputs.get("strength_model", 1.0))
                text_weight = self._value(inputs.get("strength_clip", 0.0))
                if isinstance(weight, int | float) and isinstance(text_weight, int | float):
                    loras.append((str(inputs.get("lora_name")), weight, text_weight))
        self._values.loras(reversed(loras))
        loaded = self._models(key)
        self._values.model(", ".join(loaded))

    def _models(self, key: str) -> list[str]:
        """The checkpoint files behind a model."""
        names = []
        for node in self._chain(key, "model"):
            name = self._graph[node]["inputs"].get("ckpt_name", self._graph[node]["inputs"].get("unet_name"))
            if isinstance(name, str):
                names.append(without_suffix(name))
        return names

    def _chain(self, key: str, link: str) -> list[str]:
        """A node and those before it along one kind of link."""
        nodes: list[str] = []
        while key in self._graph and key not in nodes:
            nodes.append(key)
            inputs = self._graph[key]["inputs"]
            key = _link(inputs.get(link, inputs.get(f"{link}1")))
        return nodes


def _link(value: Any) -> str:
    """The node that a link points to; empty for what is no link."""
    is_link = isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[1], int)
    return str(value[0]) if is_link else ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
