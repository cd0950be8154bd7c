"""Execution of the calls of generations: forms batches, runs them on the backend, combines the estimates."""

import math
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from limner.adapters.ip_adapter import ImageEncoderFile, IPAdapterFile
from limner.backends.base import Backend, ControlRows
from limner.backends.native import NativeBackend
from limner.backends.tuning import rows_estimate
from limner.diffusion.config import SchedulerConfig
from limner.diffusion.prediction import Scalings, scalings
from limner.errors import NumericalError, UnsupportedModel
from limner.generation.calls import (
    Answer,
    Call,
    DecodeLatents,
    Denoise,
    Denoised,
    EncodeImage,
    EncodeText,
    ReadControl,
    ReadImagePrompt,
)
from limner.nn.layers import LowRankTerm
from limner.nn.unet import Conditions
from limner.prompts.tokenizer import Tokenizer
from limner.request import Tiling
from limner.request.networks import UsedAdapter
from limner.weights.checkpoint import Checkpoint

from .adapters import AdapterLibrary, Words
from .image_prompts import ImagePromptLibrary
from .text import TextEncoder, Tower
from .tiles import decode_in_tiles, encode_in_tiles, whole_axes

T = TypeVar("T")

_ADAPTED_BYTES = 4 << 30  # of layers that adapters have changed, kept in addition to the model's own
_FEW_ROWS = 4  # adapters are applied by row if a batch of at least so many rows is faster than single rows
# In a prompt: a word of any script, a number that is no weight or step, a pictogram.
_WORD = re.compile(r"[^\W\d_]+|(?<![:.\d])\d+(?![.\d])|[\u2600-\u27bf\U0001f000-\U0001faff]")


@dataclass(frozen=True, eq=False)
class CallExecutor:
    """Executes the calls of generations with one checkpoint's networks.

    Attributes:
        name: Name of the model, for messages.
        checkpoint: The networks' configs.
        scheduler: The scheduler config, for the prediction type.
        tokenizers: Tokenizer of each text encoder.
        backend: Runs the networks.
        adapters: Reads and caches the adapter files of calls.
        image_prompts: Encodes and caches the image prompts of calls.
        vocabulary: All words that the model was trained on, for models with few; else None.
        options: `attention` and `offload` of the backend, for repeating a pass in fp32.
    """

    name: str
    checkpoint: Checkpoint
    scheduler: SchedulerConfig
    tokenizers: Mapping[str, Tokenizer]
    backend: Backend
    adapters: AdapterLibrary
    image_prompts: ImagePromptLibrary
    vocabulary: frozenset[str] | None
    options: Mapping[str, Any]

    def group(self, call: Call) -> Hashable:
        """What calls must have in common to share a forward pass."""
        match call:
            case EncodeText():
                return EncodeText, call.clip_skip, call.exact, call.adapters
            case Denoise():
                weights = () if self._by_row(call.adapters, call.x.shape, call.exact) else call.adapters
                nets = tuple(control.used for control in call.controls)
                images = tuple(prompt.positive.shape for prompt in call.image_prompts)
                shared = call.x.shape, _context_length([call]), call.deep is not None, weights, call.tiling
                return Denoise, *shared, nets, len(call.features), images
            case DecodeLatents():
                return DecodeLatents, call.latents.shape, call.tiled, call.tiling
            case EncodeImage():
                return EncodeImage, call.image.shape, call.tiled, call.tiling
            case ReadControl():
                return ReadControl, call.used, call.image.shape, call.tiling
            case ReadImagePrompt():
                return ReadImagePrompt, call.prompt.adapter, call.prompt.encoder

    @torch.inference_mode()
    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """Answer calls of one `group`, in their order, in one forward pass.

        If a row is not finite, the answer to its call holds the error. Other errors are raised.
        """
        for call in calls:
            reason = self.backend.refusal(call)
            if reason is not None:
                raise UnsupportedModel(
                    f"the {self.backend.name} backend {reason}", hint="use `backend=torch`"
                )
        # Calls of one group have one type; mypy does not know that.
        match calls[0]:
            case EncodeText():
                return self._encode_text(cast("Sequence[EncodeText]", calls))
            case Denoise():
                return self._denoise(cast("Sequence[Denoise]", calls))
            case DecodeLatents():
                return self._decode(cast("Sequence[DecodeLatents]", calls))
            case EncodeImage():
                return self._encode_image(cast("Sequence[EncodeImage]", calls))
            case ReadControl():
                return self._read_control(cast("Sequence[ReadControl]", calls))
            case ReadImagePrompt():
                return [self._read_image_prompt(call) for call in cast("Sequence[ReadImagePrompt]", calls)]

    def _encode_text(self, calls: Sequence[EncodeText]) -> list[Answer]:
        variant = self._variant(calls[0].adapters)
        return [
            replace(
                answer,
                warnings=(
                    *answer.warnings,
                    *self.adapters.warnings(call.adapters),
                    *self._unknown_words(call.prompts),
                ),
            )
            for call, answer in zip(calls, variant.texts.answer(calls), strict=True)
        ]

    def _unknown_words(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """A warning that names the words that a model with a small vocabulary was not trained on."""
        known = self.vocabulary
        if known is None:
            return ()
        words = dict.fromkeys(word for prompt in prompts for word in _WORD.findall(prompt.lower()))
        unknown = [word for word in words if word not in known and word != "break"]
        return (f"{self.name} was not trained on these words: {', '.join(unknown)}",) if unknown else ()

    def _denoise(self, calls: Sequence[Denoise]) -> list[Answer]:
        rows = [(call, name) for call in calls for name in call.branches]
        scalings_of = {id(call): scalings(self.scheduler.prediction_type, call.sigma) for call in calls}

        conditionings = [call.conditionings[name] for call, name in rows]
        x = torch.cat([call.x * scalings_of[id(call)].c_in for call, _ in rows])  # [R, C, h, w]
        if conditionings[0].channels is not None:
            x = torch.cat([x, torch.cat([_required(one.channels) for one in conditionings])], dim=1)
        timesteps = torch.tensor([call.timestep for call, _ in rows])
        length, contexts = _context_length(calls), [one.context for one in conditionings]
        context = torch.cat([c.repeat(1, length // c.shape[1], 1) for c in contexts])  # [R, T, C]
        known = [call.deep[name] for call, name in rows if call.deep is not None]
        deep = torch.cat(known) if known else None
        keep = any(call.keep for call in calls)
        pooled = sizes = guidance = None
        if conditionings[0].pooled is not None:
            pooled = torch.cat([_required(one.pooled) for one in conditionings])  # [R, P]
            sizes = torch.tensor([one.sizes for one in conditionings])  # [R, 6 or 5]
        if conditionings[0].guidance is not None:
            guidance = torch.tensor([_required(one.guidance) for one in conditionings])  # [R]

        controls = [
            ControlRows(
                one.used,
                torch.cat([call.controls[index].embedding for call, _ in rows]),
                torch.tensor([call.controls[index].weights_of(name) for call, name in rows]),
            )
            for index, one in enumerate(calls[0].controls)
        ]
        levels = range(len(calls[0].features))
        features = [torch.cat([call.features[level] for call, _ in rows]) for level in levels]
        prompts = range(len(calls[0].image_prompts))
        pictures = [
            torch.cat([call.image_prompts[i].for_branch(name) for call, name in rows]) for i in prompts
        ]

        adapters = (
            () if self._by_row(calls[0].adapters, calls[0].x.shape, calls[0].exact) else calls[0].adapters
        )
        low_rank: Mapping[str, Sequence[LowRankTerm | None]] = {}
        if not adapters and any(call.adapters for call in calls):
            low_rank = self.adapters.terms([call.adapters for call, _ in rows])
        conditions = Conditions(
            pooled, sizes, guidance, features=features, image_prompts=pictures, low_rank=low_rank
        )

        def forward(backend: Backend, which: Tensor) -> tuple[Tensor, ...]:
            output, kept = backend.denoise(
                x[which],
                timesteps[which],
                context[which],
                conditions.rows(which),
                controls=[control.of(which) for control in controls],
                keep=keep,
                deep=None if deep is None else deep[which.to(deep.device)],
            )
            return (output,) if kept is None else (output, kept)

        outputs, repeated_rows, failed_rows = self._finite(forward, len(rows), adapters, calls[0].tiling)
        estimates: dict[int, dict[str, Tensor]] = defaultdict(dict)
        kept: dict[int, dict[str, Tensor]] = defaultdict(dict)
        row_of: dict[int, set[int]] = defaultdict(set)
        for row, (call, name) in enumerate(rows):
            estimates[id(call)][name] = scalings_of[id(call)].denoised(call.x, outputs[0][row : row + 1])
            row_of[id(call)].add(row)
            if call.keep and len(outputs) > 1:
                kept[id(call)][name] = outputs[1][row : row + 1].clone()
        return [
            self._answer(
                _combined(call, estimates[id(call)], scalings_of[id(call)], kept[id(call)]),
                f"the U-Net at step {call.step}",
                bool(repeated_rows & row_of[id(call)]),
                bool(failed_rows & row_of[id(call)]),
            )
            for call in calls
        ]

    def _decode(self, calls: Sequence[DecodeLatents]) -> list[Answer]:
        config, first = self.checkpoint.vae_config, calls[0]
        scaled = torch.cat([call.latents for call in calls]) / config.scaling_factor
        inside, around = _ends(first, *scaled.shape[2:])

        def decode(backend: Backend, which: Tensor) -> tuple[Tensor]:
            if not first.tiled:
                return (backend.decode(scaled[which]),)
            rows = torch.split(scaled[which], 1)
            tiled = [decode_in_tiles(backend.decode, row, config.downscale, around) for row in rows]
            return (torch.cat(tiled),)

        [images], repeated_rows, failed_rows = self._finite(decode, len(calls), tiling=inside)
        return [
            self._answer(image, "the autoencoder's decoder", row in repeated_rows, row in failed_rows)
            for row, image in enumerate(images[:, None])
        ]

    def _encode_image(self, calls: Sequence[EncodeImage]) -> list[Answer]:
        config, first = self.checkpoint.vae_config, calls[0]
        images, factor = torch.cat([call.image for call in calls]), config.scaling_factor
        inside, around = _ends(first, *(side // config.downscale for side in images.shape[2:]))

        def encode(backend: Backend, which: Tensor) -> tuple[Tensor, ...]:
            if not first.tiled:
                return backend.encode(images[which])
            rows = torch.split(images[which], 1)
            tiled = [encode_in_tiles(backend.encode, row, config.downscale, around) for row in rows]
            return tuple(torch.cat(moment) for moment in zip(*tiled, strict=True))

        (means, logvars), repeated_rows, failed_rows = self._finite(encode, len(calls), tiling=inside)
        spreads = (0.5 * logvars).exp()
        return [
            self._answer(
                (means[row, None] * factor, spreads[row, None] * factor),
                "the autoencoder's encoder",
                row in repeated_rows,
                row in failed_rows,
            )
            for row in range(len(calls))
        ]

    def _read_control(self, calls: Sequence[ReadControl]) -> list[Answer]:
        images, used = torch.cat([call.image for call in calls]), calls[0].used
        read, repeated_rows, failed_rows = self._finite(
            lambda backend, which: tuple(backend.read_control(used, images[which])),
            len(calls),
            tiling=calls[0].tiling,
        )
        answers = [
            self._answer(
                tuple(tensor[row, None] for tensor in read),
                used.path.name,
                row in repeated_rows,
                row in failed_rows,
            )
            for row in range(len(calls))
        ]
        return [
            replace(answer, warnings=call.used.warnings + answer.warnings)
            for call, answer in zip(calls, answers, strict=True)
        ]

    def _read_image_prompt(self, call: ReadImagePrompt) -> Answer:
        warnings = list(call.prompt.warnings)

        def encode(adapter: IPAdapterFile, encoder: ImageEncoderFile, pixels: Tensor | None) -> Tensor:
            [encoded], repeated_rows, failed_rows = self._finite(
                lambda backend, _: (backend.encode_image_prompt(adapter, encoder, pixels),), 1
            )
            answer = self._answer(encoded, adapter.path.name, bool(repeated_rows), bool(failed_rows))
            if answer.error is not None:
                raise answer.error
            warnings.extend(answer.warnings)
            return encoded

        return Answer(self.image_prompts.encode(call.prompt, call.pixels, encode), tuple(warnings))

    def _finite(
        self,
        forward: Callable[[Backend, Tensor], tuple[Tensor, ...]],
        rows: int,
        adapters: tuple[UsedAdapter, ...] = (),
        tiling: Tiling | None = None,
    ) -> tuple[tuple[Tensor, ...], set[int], set[int]]:
        """Run a forward pass, and repeat it in fp32 for the rows that are not finite.

        Args:
            forward: Runs the pass with a backend, for the rows with these indices.

        Returns:
            The outputs, each [rows, …]; the rows that fp32 made finite; the rows that are not finite in fp32.
        """
        backend = self._variant(adapters).backend
        outputs = forward(backend.seamless(tiling) if tiling else backend, torch.arange(rows))
        repeated, failed = set[int](), _not_finite(outputs)
        if failed and self.backend.precision != "fp32":
            repeated = failed
            which = torch.tensor(sorted(repeated))
            wide: Backend = self._in_fp32
            if adapters:
                wide = wide.adapted(self.adapters.weighted(adapters))
            outputs_fp32 = forward(wide.seamless(tiling) if tiling else wide, which)
            outputs = tuple(
                output.index_copy(0, which.to(output.device), row.to(output))
                for output, row in zip(outputs, outputs_fp32, strict=True)
            )
            failed = _not_finite(outputs)
        return outputs, repeated - failed, failed

    def _answer(self, value: Any, part: str, repeated: bool, failed: bool) -> Answer:
        if failed:
            return Answer(
                error=NumericalError(
                    f"{part} produced NaN or infinity, in fp32 too",
                    hint="check the checkpoint's weights, or lower the guidance scale",
                )
            )
        warning = f"{part} produced NaN or infinity in {self.backend.precision}; fp32 was used there"
        return Answer(value, (warning,) if repeated else ())

    @cached_property
    def _in_fp32(self) -> NativeBackend:
        """The same networks in full precision, each read when it is first needed."""
        return NativeBackend(self.checkpoint, self.backend.device, "fp32", **self.options)

    def _variant(self, adapters: tuple[UsedAdapter, ...]) -> "_Variant":
        """The model with these adapters. Those used last are kept, up to `_ADAPTED_BYTES`."""
        known = self._variants
        if adapters not in known:
            backend = self.backend
            if adapters:
                backend = backend.adapted(self.adapters.weighted(adapters))
            known[adapters] = _Variant(backend, self._texts(backend, self.adapters.words(adapters)))
        known.move_to_end(adapters)
        while len(known) > 2 and sum(v.backend.bytes for key, v in known.items() if key) > _ADAPTED_BYTES:
            del known[next(key for key in known if key)]
        return known[adapters]

    @cached_property
    def _variants(self) -> "OrderedDict[tuple[UsedAdapter, ...], _Variant]":
        return OrderedDict()

    def _texts(self, backend: Backend, words: Words) -> TextEncoder:
        towers = []
        for part, tokenizer in self.tokenizers.items():

            def encode(ids: Tensor, clip_skip: int, part: str = part) -> tuple[Tensor, Tensor]:
                return backend.encode_text(
                    ids,
                    clip_skip + self.checkpoint.architecture.skipped_layers,
                    part=part,
                    final_norm=not self.checkpoint.architecture.skipped_layers,
                    learned=words.table(part),
                )

            towers.append(Tower(tokenizer, encode))
        return TextEncoder(towers, words, pooled=self.checkpoint.pooled_channels > 0)

    def merged_bytes(self, adapters: tuple[UsedAdapter, ...], shape: Sequence[int], exact: bool) -> int:
        """Bytes of the layers that adapters change where they are merged into copies of the weights.

        Args:
            shape: Shape of the latents, [..., h, w].
            exact: As in `Denoise`.
        """
        by_row = self._by_row(adapters, shape, exact)
        size = 2 if self.backend.precision in ("bf16", "fp16") else 4
        changed = {
            (part, name)
            for used in adapters
            for part, patches in self.adapters.read(used).patches.items()
            if not (by_row and part == "unet")
            for name in patches
        }
        return size * sum(math.prod(self.adapters.targets.shapes[part][name]) for part, name in changed)

    def merged_in_memory(self, but: Collection[tuple[UsedAdapter, ...]] = ()) -> int:
        """Bytes of the layers with merged adapters in memory, except with these adapters."""
        return sum(one.backend.bytes for key, one in self._variants.items() if key and key not in but)

    @property
    def fp32_bytes(self) -> int:
        """Bytes of the networks that were read in fp32 to repeat forward passes."""
        return self._in_fp32.networks.bytes_read if "_in_fp32" in vars(self) else 0

    def forget_merged(self, but: Collection[tuple[UsedAdapter, ...]]) -> None:
        """Drop the layers with merged adapters, except with these. They are merged again when needed."""
        for adapters in [key for key in self._variants if key and key not in but]:
            del self._variants[adapters]

    def _by_row(self, adapters: tuple[UsedAdapter, ...], shape: Sequence[int], exact: bool) -> bool:
        """Whether adapters are applied to the rows of a forward pass rather than merged into the weights.

        Then calls with other adapters can share the pass. It pays where larger batches are faster.

        Args:
            shape: Shape of the latents, [..., h, w].
        """
        if exact or not adapters:
            return False
        rows = rows_estimate(self.checkpoint.parameters, shape[-2], shape[-1], self.backend.device.type)
        known = self.backend.rowwise
        return rows >= _FEW_ROWS and all(self.adapters.is_low_rank(one, known) for one in adapters)


@dataclass(frozen=True, eq=False)
class _Variant:
    """A model's networks with some adapters, and a text encoder that caches their outputs."""

    backend: Backend
    texts: TextEncoder


def _ends(call: DecodeLatents | EncodeImage, height: int, width: int) -> tuple[Tiling | None, str]:
    """The axes along which opposite edges meet within the network, and those along which the tiles join them.

    Args:
        height, width: of the latents.
    """
    if call.tiling is None or not call.tiled:
        return call.tiling, ""
    whole = whole_axes(height, width)
    inside = "".join(axis for axis in call.tiling if axis in whole)
    return cast("Tiling | None", inside or None), "".join(axis for axis in call.tiling if axis not in whole)


def _combined(
    call: Denoise, estimates: Mapping[str, Tensor], around: Scalings[float], deep: Mapping[str, Tensor]
) -> Denoised:
    """The answer to a call, from the estimate of each of its branches."""
    guided = call.guidance.combine(estimates, call.x, call.sigma, around)
    if not call.paired:
        return Denoised(guided, deep=deep)
    unguided = call.guidance.unguided(estimates, call.sigma)
    return Denoised(guided, guided if unguided is None else unguided, deep)


def _context_length(calls: Sequence[Denoise]) -> int:
    """The length that the contexts of all branches are repeated to, their least common multiple.

    Attention does not change when its context is repeated whole, unlike when it is padded, but its rounding
    does. So calls share a forward pass only where each alone has the same length.
    """
    lengths = (call.conditionings[name].context.shape[1] for call in calls for name in call.branches)
    return math.lcm(*lengths)


def _required(value: T | None) -> T:
    """An input that all rows of a batch have, since the first one has it."""
    assert value is not None
    return value


def _not_finite(outputs: Sequence[Tensor]) -> set[int]:
    """The rows of [R, …] tensors where any is not finite."""
    fine = torch.stack([output.isfinite().flatten(1).all(1).cpu() for output in outputs]).all(0)
    return set(range(len(fine))) - set(fine.nonzero().flatten().tolist())
