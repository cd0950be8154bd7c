"""From what an image of any program says to a request that this service can draw.

Each value ends in one of three lists: it is *understood*, it is *replaced* by the nearest that there is here,
or it is *not understood*, with the reason. Nothing is dropped in silence, and nothing is stored. No torch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from limner.catalogue.catalogue import Entry
from limner.catalogue.contents import FAMILY_NAMES
from limner.catalogue.hashes import legacy_model_hash
from limner.errors import InvalidRequest
from limner.images.inputs import IMAGE_FIELDS
from limner.images.metadata import OWN, Reading
from limner.images.readers.base import NamedModel, NotTaken, ReadRequest, without_suffix
from limner.prompts.networks import LORA_TAGS
from limner.request import GenerationRequest
from limner.request.fields import MAX_SIDE, MIN_SIDE
from limner.request.names import nearest_name
from limner.request.parsing import with_own_names

_LEGACY_DIGITS = 8  # of the hashes of checkpoints until 2023
_LIKE = 0.75  # likeness of names, as difflib has it, from which one may stand for another
_SIDES = ("width", "height", "hires_width", "hires_height")
_NAMES = ("sampler", "sigma_schedule", "hires_sampler", "hires_sigma_schedule", "hires_upscaler")
_OF_IMAGE = (
    "strength",
    "mask",
    "mask_blur",
    "mask_padding",
    "inpaint_area",
    "extend",
    "image_guidance_scale",
)
_TAG = re.compile(rf"<({'|'.join(sorted(LORA_TAGS))}):([^:>]+)((?::[^>]*)?)>")
_OF_EMBEDDINGS = ("TI hashes", "TI")  # of AUTOMATIC1111
_OF_VAES = ("VAE", "vae", "use_vae_model")  # of several programs
_OWN_VAE = "models of this service are used with their own autoencoder"
_NO_NETWORK = "there is no LoRA of this name or hash here"


@dataclass(frozen=True)
class Understood:
    """A field of the request that says what the image says.

    Attributes:
        field: Its name.
        value: Its value, as JSON has it.
    """

    field: str
    value: Any

    @property
    def label(self) -> str:
        """The field's name for people."""
        return self.field.replace("_", " ").replace("loras", "LoRAs").capitalize()


@dataclass(frozen=True)
class Replaced:
    """Something that is not here, and what stands for it.

    Attributes:
        field: Field of the request.
        given: What the image says.
        used: What the request says; None for the model's default.
        reason: Why this.
    """

    field: str
    given: Any
    used: Any
    reason: str


@dataclass
class Imported:
    """What an image says, laid out.

    Attributes:
        program: The program that wrote it.
        understood, replaced, not_understood: All that it says.
        request: A request that can be drawn here; None where the image's values make none.
        notes: What concerns no single value.
    """

    program: str
    understood: list[Understood] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)
    not_understood: list[NotTaken] = field(default_factory=list)
    request: GenerationRequest | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Here:
    """What there is on this service.

    Attributes:
        checkpoints, loras, embeddings: Of the catalogue.
        default: The checkpoint of requests that name none.
        has_upload: Says whether the caller has an upload of this hash.
    """

    checkpoints: Sequence[Entry]
    loras: Sequence[Entry]
    embeddings: Sequence[Entry]
    default: Entry
    has_upload: Callable[[str], bool]


def lay_out(reading: Reading, here: Here) -> Imported:
    """What an image says, as a request of this service."""
    return _Layout(reading.program, reading.request, here).made()


class _Layout:
    """A request on its way."""

    def __init__(self, program: str, read: ReadRequest, here: Here) -> None:
        self._read, self._here = read, here
        self._fields = dict(read.fields)
        self._fields.pop("schema_version", None)
        if program == OWN:  # which writes every field
            fields = GenerationRequest.model_fields
            self._fields = {
                name: value for name, value in self._fields.items() if value != fields[name].get_default()
            }
        self._made = Imported(program)

    def made(self) -> Imported:
        self._note_not_taken()
        self._samplers()
        self._sides()
        self._images()
        model = self._model()
        self._networks(model)
        self._made.request = request = self._valid()
        if request is not None:
            replaced = {one.field for one in self._made.replaced}
            said = request.model_dump(mode="json", exclude_unset=True)
            self._made.understood = [
                Understood(name, value)
                for name, value in said.items()
                if name not in replaced and name != "schema_version"
            ]
        return self._made

    def _note_not_taken(self) -> None:
        for one in self._read.not_taken:
            if one.name in _OF_EMBEDDINGS:
                self._embeddings(one)
            elif one.name:
                reason = _OWN_VAE if one.name in _OF_VAES else one.reason
                self._made.not_understood.append(replace(one, reason=reason))
            elif one.reason not in self._made.notes:
                self._made.notes.append(one.reason)

    def _embeddings(self, listed: NotTaken) -> None:
        """Textual inversions, whose names stand in the prompts: those that are not here are read as words."""
        known = {_folded(entry.name) for entry in self._here.embeddings if entry.problem is None}
        for pair in str(listed.value).split(","):
            name = pair.rpartition(":")[0].strip() or pair.strip()
            if name and _folded(name) not in known:
                reason = "there is no textual inversion of this name here: its name is read as words"
                self._made.not_understood.append(NotTaken(listed.name, pair.strip(), reason))

    def _replace(self, name: str, given: Any, used: Any, reason: str) -> None:
        self._made.replaced.append(Replaced(name, given, used, reason))
        if used is None:
            self._fields.pop(name, None)
        else:
            self._fields[name] = used

    def _drop(self, name: str, reason: str) -> None:
        """Leave a field out."""
        value = self._fields.pop(name)
        self._made.not_understood.append(NotTaken(name, value, reason))

    # Names of samplers, sizes, input images.

    def _samplers(self) -> None:
        """The nearest samplers, sigma schedules and upscalers for those that Limner does not have."""
        given = {name: self._fields[name] for name in _NAMES if isinstance(self._fields.get(name), str)}
        for name, said in {**given, **self._read.unknown_names}.items():
            try:
                self._fields |= with_own_names({name: said})
            except InvalidRequest:
                what = name.removeprefix("hires_").replace("_", " ")
                near = nearest_name(name, said)
                if near is None and name == "hires_upscaler":
                    near = "lanczos"  # of pixels, as networks that upscale are
                reason = f"Limner has no {what} of this name: "
                reason += "the model's default is used" if near is None else "the nearest one by name is used"
                self._replace(name, said, near, reason)

    def _sides(self) -> None:
        for name in _SIDES:
            side = self._fields.get(name)
            if isinstance(side, int) and (side % 8 or not MIN_SIDE <= side <= MAX_SIDE):
                used = min(max(round(side / 8) * 8, MIN_SIDE), MAX_SIDE)
                reason = f"sides are multiples of 8 pixels from {MIN_SIDE} to {MAX_SIDE}"
                self._replace(name, side, used, reason)

    def _images(self) -> None:
        """Leave out input images that this service does not have, and what says something of them alone."""
        absent = "this service does not have this image: add it"
        for name in IMAGE_FIELDS:
            if isinstance(source := self._fields.get(name), str) and not self._has(source):
                self._drop(name, absent)
        if "image" not in self._fields:
            reason = "it says something of an image to begin with, which the image does not hold: add one"
            for name in _OF_IMAGE:
                if name in self._fields:
                    usual = GenerationRequest.model_fields[name].get_default()
                    if self._fields[name] in (usual, list(usual) if isinstance(usual, tuple) else usual):
                        del self._fields[name]
                    else:
                        self._drop(name, reason)
        self._fields |= {
            name: kept
            for name, images in (("controls", ("image",)), ("image_prompts", ("images",)))
            if (kept := self._with_images(name, images[0])) is not None
        }

    def _with_images(self, name: str, key: str) -> list[Any] | None:
        """The controls or image prompts whose images are here; None where the request has no such field."""
        if name not in self._fields:
            return None
        kept = []
        for unit in self._fields[name]:
            sources = unit[key] if isinstance(unit[key], list | tuple) else [unit[key]]
            if all(self._has(source) for source in sources):
                kept.append(unit)
            else:
                reason = "this service does not have its image: add it"
                self._made.not_understood.append(NotTaken(name, unit, reason))
        return kept

    def _has(self, source: str) -> bool:
        digest = source.removeprefix("sha256:")
        return source.startswith("data:") or (digest != source and self._here.has_upload(digest))

    # Files of weights.

    def _model(self) -> Entry:
        """The checkpoint that the image names, or what stands for it."""
        named = self._read.model
        self._fields.pop("revision", None)
        self._fields.pop("variant", None)
        if named is None:
            entry = self._here.default
            reason = "the image names no model: the service's default is used"
            self._replace("model", None, _reference(entry, self._here.checkpoints), reason)
            return entry
        usable = [entry for entry in self._here.checkpoints if entry.problem is None]
        entry, reason = find_nearest(named, usable) or self._of_family(named, usable)
        used = _reference(entry, self._here.checkpoints)
        if reason:
            self._replace("model", named.name or named.sha256, used, reason)
        else:
            self._fields["model"] = used
        if (refiner := self._fields.get("refiner")) is not None:
            found = find_nearest(NamedModel(without_suffix(refiner)), usable)
            if found is None:
                self._fields.pop("refiner_start", None)
                self._drop("refiner", "there is no model of this name here")
            else:
                self._fields["refiner"] = _reference(found[0], self._here.checkpoints)
                if found[1]:
                    self._replace("refiner", refiner, self._fields["refiner"], found[1])
        return entry

    def _of_family(self, named: NamedModel, usable: Sequence[Entry]) -> tuple[Entry, str]:
        """A checkpoint for one that is not here and has no similar name, and why this one."""
        family = named.family or _family_by_name(named.name)
        unknown = "there is no model of this name or hash here"
        own = [entry for entry in usable if entry.family == family] if family else []
        if self._here.default in own or not own:
            why = "the service's default is used"
            if not family:
                why += ", and nothing says which family the image's belongs to"
            elif not own:
                why += f", as there is none of its family ({_called(family)}) either"
            return self._here.default, f"{unknown}: {why}"
        return own[0], f"{unknown}: one of the same family ({_called(family)}) is used"

    def _networks(self, model: Entry) -> None:
        """Adapters of the request and of its prompts, by what there is here for the model."""
        kept = []
        for lora in self._fields.pop("loras", None) or ():
            name = self._adapter(str(lora["name"]), model, {"weight": lora.get("weight")})
            if name is not None:
                kept.append({**lora, "name": name})
        if kept:
            self._fields["loras"] = kept

        def in_prompt(tag: re.Match[str]) -> str:
            name = self._adapter(tag[2], model, {"weight": tag[3].removeprefix(":")})
            return "" if name is None else f"<{tag[1]}:{name}{tag[3]}>"

        for prompt in ("prompt", "hires_prompt"):
            if isinstance(text := self._fields.get(prompt), str):
                self._fields[prompt] = _TAG.sub(in_prompt, text)

    def _adapter(self, name: str, model: Entry, said: Mapping[str, Any]) -> str | None:
        """The name of an adapter here; None, and a note, where there is none that can be used."""
        own = without_suffix(name)
        digits = self._read.hashes.get(own) or self._read.hashes.get(name, "")
        fitting = [entry for entry in self._here.loras if entry.family in ("", model.family)]
        found = find_nearest(NamedModel(own, digits), [one for one in fitting if one.problem is None])
        if found is None:
            other = find_nearest(NamedModel(own, digits), self._here.loras)
            reason = _NO_NETWORK
            if other is not None and not other[1]:
                what = other[0].problem or f"it is for {_called(other[0].family)}"
                reason = f"the LoRA {other[0].name} cannot be used with the model {model.name}: {what}"
            self._made.not_understood.append(NotTaken("LoRA", {"name": name, **said}, reason))
            return None
        entry, reason = found
        used = _reference(entry, self._here.loras)
        if reason:
            self._made.replaced.append(Replaced("loras", name, used, reason))
        return name if entry.is_named(name) and not reason else used

    # What is left.

    def _valid(self) -> GenerationRequest | None:
        """The request, without fields whose values no request has; None where that does not help."""
        while True:
            try:
                return GenerationRequest.of(self._fields)
            except InvalidRequest as error:
                at_fault = [name for name in error.fields if name in self._fields and name != "prompt"]
                if not at_fault:  # the fields contradict each other
                    words = re.findall(r"[a-z_]+", error.message)
                    at_fault = [word for word in words if word in self._fields and word != "prompt"][:1]
                if not at_fault:
                    self._made.notes.append(error.message)
                    return None
                for name in at_fault:
                    self._drop(name, error.message)


def find_nearest(named: NamedModel, entries: Sequence[Entry]) -> tuple[Entry, str] | None:
    """The file of weights that an image names, and why it is another one; "" where it is that very one.

    A hash counts more than a name. A file that is not hashed yet counts as having the hash of its name.

    Args:
        entries: Those to choose from.
    """
    if named.sha256:
        for entry in entries:
            if any(digest.startswith(named.sha256) for digest in _hashes(entry)):
                return entry, ""
        if len(named.sha256) == _LEGACY_DIGITS:
            for entry in entries:
                if entry.path.is_file() and legacy_model_hash(entry.path) == named.sha256:
                    return entry, ""
    if not named.name:
        return None
    folded = _folded(named.name)
    by_name = {_folded(entry.name): entry for entry in reversed(entries)}
    by_id = {entry.id: entry for entry in entries}
    if (own := by_id.get(named.name) or by_name.get(folded)) is not None:
        differs = len(named.sha256) > _LEGACY_DIGITS and _hashes(own)
        reason = f"the file of this name here is another one: its hash is not {named.sha256[:10]}"
        return own, reason if differs else ""
    near = get_close_matches(folded, by_name, n=1, cutoff=_LIKE)
    if near:
        return by_name[near[0]], "it is not here: the nearest one by name is used"
    return None


def _hashes(entry: Entry) -> list[str]:
    return [digest for digest in (entry.sha256, entry.tensors_sha256) if digest]


def _folded(name: str) -> str:
    """A name without folders, suffix, and what spellings differ in."""
    return re.sub(r"[^a-z0-9]", "", without_suffix(name).lower())


def _reference(entry: Entry, entries: Sequence[Entry]) -> str:
    """The shortest text by which a request names an entry alone."""
    alone = sum(one.is_named(entry.name) for one in entries) == 1
    return entry.name if alone else entry.id


def _called(family: str) -> str:
    return FAMILY_NAMES.get(family, family)


def _family_by_name(name: str) -> str:
    """The family that the name of a checkpoint suggests; empty where it does not."""
    folded = name.lower()
    if re.search(r"xl|pony|illustrious|noobai", folded):
        return "xl"
    if re.search(r"(?:sd|v)[-_ ]?1[-_. ]?[45]|1\.5", folded):
        return "sd1"
    return "sd2" if re.search(r"(?:sd|v)[-_ ]?2[-_. ]?[01]|768-ema", folded) else ""
