"""Base classes of the pipelines of one model family: prompt encoding and U-Net conditioning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.errors import InvalidRequest
from limner.generation.calls import Conditioning
from limner.request.networks import UsedAdapter

from .calling import (
    CallArguments,
    Prompts,
    Size,
    StableDiffusionXLPipelineOutput,
    one_per_prompt,
    repeat_rows,
    split_branches,
)
from .pipelines import DiffusionPipeline


class StableDiffusionFamily(DiffusionPipeline):
    """Base of the pipelines for Stable Diffusion 1.x and 2.x."""

    component_names: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    steps_offset: ClassVar[int | None] = 1
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
    )

    def encode_prompt(
        self,
        prompt: Prompts,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Prompts = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return embeddings [B, T, C] of the prompts and of the negative prompts; the latter are None without
        guidance.

        Args:
            device: No effect: the embeddings are on the pipeline's device.
            clip_skip: Number of last text encoder layers to skip. Negative prompts use the last layer, as in
                diffusers.
        """
        arguments = CallArguments(prompt, prompt_embeds=prompt_embeds)
        adapters = self.used_adapters(self._model, lora_scale)
        if prompt_embeds is None:
            read = self._encode_texts(
                one_per_prompt(prompt, arguments.prompt_count, "prompt"), clip_skip, adapters
            )
            prompt_embeds = self._copy_to_device(torch.cat([one.context for one in read]))
        positive = repeat_rows(prompt_embeds, num_images_per_prompt)
        if not do_classifier_free_guidance:
            return positive, None
        if negative_prompt_embeds is None:
            texts = one_per_prompt(negative_prompt, arguments.prompt_count, "negative_prompt")
            read = self._encode_texts(texts, None, adapters)
            negative_prompt_embeds = self._copy_to_device(torch.cat([one.context for one in read]))
        return positive, repeat_rows(negative_prompt_embeds, num_images_per_prompt)

    def _conditioning_tensors(
        self, arguments: CallArguments, size: Size, scale: float | None
    ) -> dict[str, Any]:
        positive, negative = self.encode_prompt(
            arguments.prompt,
            None,
            arguments.num_images_per_prompt,
            self.do_classifier_free_guidance,
            arguments.negative_prompt,
            arguments.prompt_embeds,
            arguments.negative_prompt_embeds,
            scale,
            arguments.clip_skip,
        )
        both = positive if negative is None else torch.cat([negative, positive])
        return {"prompt_embeds": both, "negative_prompt_embeds": negative}

    def _conditionings(self, tensors: Mapping[str, Any], pictures: int) -> list[dict[str, Conditioning]]:
        guidance = self._guidance_scale if self._model.facts.guides_itself else None
        channels = _extra_channels(tensors, pictures)
        negative, positive = split_branches(tensors["prompt_embeds"], pictures)
        branches = {"positive": positive} | ({} if negative is None else {"negative": negative})
        return [
            {
                name: Conditioning(rows[row : row + 1], channels=channels[row], guidance=guidance)
                for name, rows in branches.items()
            }
            for row in range(pictures)
        ]


@dataclass(frozen=True)
class XLArguments(CallArguments):
    """Arguments of XL pipeline calls."""

    prompt_2: Prompts = None
    negative_prompt_2: Prompts = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    original_size: Size | None = None
    crops_coords_top_left: Size = (0, 0)
    target_size: Size | None = None
    negative_original_size: Size | None = None
    negative_crops_coords_top_left: Size = (0, 0)
    negative_target_size: Size | None = None
    denoising_end: float | None = None


@dataclass(frozen=True)
class XLImageArguments(XLArguments):
    """Arguments of XL image-to-image and inpainting calls. The aesthetic scores are for the refiner."""

    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    denoising_start: float | None = None


class StableDiffusionXLFamily(DiffusionPipeline):
    """Base of the pipelines for Stable Diffusion XL."""

    component_names: ClassVar[tuple[str, ...]] = (
        *("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler"),
    )
    optional = ("text_encoder", "tokenizer")  # the refiner has neither
    arguments_class: ClassVar[type[CallArguments]] = XLArguments
    defaults: ClassVar[Mapping[str, Any]] = {"guidance_scale": 5.0}
    output = StableDiffusionXLPipelineOutput
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (
        "latents",
        "prompt_embeds",
        "add_text_embeds",
        "add_time_ids",
    )

    def encode_prompt(
        self,
        prompt: Prompts,
        prompt_2: Prompts = None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Prompts = None,
        negative_prompt_2: Prompts = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Return embeddings [B, T, C] of the prompts and the negative prompts, then pooled embeddings [B, P]
        of both.

        Negative embeddings are None without guidance. They are zero if no negative prompt is given and
        `force_zeros_for_empty_prompt` is set.

        Args:
            prompt_2, negative_prompt_2: Prompts for the second text encoder; None uses those of the first.
            device: No effect: the embeddings are on the pipeline's device.
            clip_skip: Number of layers to skip before the penultimate one. Negative prompts use the
                penultimate layer, as in diffusers.
        """
        arguments = CallArguments(prompt, prompt_embeds=prompt_embeds)
        adapters = self.used_adapters(self._model, lora_scale)
        times = num_images_per_prompt
        if prompt_embeds is None:
            first, second = (
                one_per_prompt(text, arguments.prompt_count, "prompt")
                for text in (prompt, prompt_2 or prompt)
            )
            prompt_embeds, pooled_prompt_embeds = self._encode_text_pairs(first, second, clip_skip, adapters)
        if pooled_prompt_embeds is None:
            raise InvalidRequest("prompt_embeds were given without pooled_prompt_embeds")
        positive, pooled = repeat_rows(prompt_embeds, times), repeat_rows(pooled_prompt_embeds, times)
        if not do_classifier_free_guidance:
            return positive, None, pooled, None
        if negative_prompt_embeds is None and negative_prompt is None and self.force_zeros_for_empty_prompt:
            return positive, torch.zeros_like(positive), pooled, torch.zeros_like(pooled)
        if negative_prompt_embeds is None:
            first, second = (
                one_per_prompt(text, arguments.prompt_count, "negative_prompt")
                for text in (negative_prompt, negative_prompt_2 or negative_prompt)
            )
            found = self._encode_text_pairs(first, second, None, adapters)
            negative_prompt_embeds, negative_pooled_prompt_embeds = found
        if negative_pooled_prompt_embeds is None:
            raise InvalidRequest("negative_prompt_embeds were given without negative_pooled_prompt_embeds")
        negatives = (
            repeat_rows(negative_prompt_embeds, times),
            repeat_rows(negative_pooled_prompt_embeds, times),
        )
        return positive, negatives[0], pooled, negatives[1]

    def _encode_text_pairs(
        self,
        first: Sequence[str],
        second: Sequence[str],
        clip_skip: int | None,
        adapters: tuple[UsedAdapter, ...],
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings [B, T, C] and pooled embeddings [B, P] of one text per row for each text encoder.

        Args:
            first, second: Texts for the first and for the second text encoder.
        """
        texts = self._model.checkpoint.text_configs
        width = texts["text_encoder"].hidden_size if "text_encoder" in texts else 0
        read = self._encode_texts([*first, *second], clip_skip, adapters)
        one, other = read[: len(first)], read[len(first) :]
        contexts = [
            torch.cat([a.context[..., :width], b.context[..., width:]], dim=-1)
            for a, b in zip(one, other, strict=True)
        ]
        pooled = [conditioning.pooled for conditioning in other if conditioning.pooled is not None]
        return self._copy_to_device(torch.cat(contexts)), self._copy_to_device(torch.cat(pooled))

    def _conditioning_tensors(
        self, arguments: XLArguments, size: Size, scale: float | None
    ) -> dict[str, Any]:
        positive, negative, pooled, negative_pooled = self.encode_prompt(
            arguments.prompt,
            arguments.prompt_2,
            None,
            arguments.num_images_per_prompt,
            self.do_classifier_free_guidance,
            arguments.negative_prompt,
            arguments.negative_prompt_2,
            arguments.prompt_embeds,
            arguments.negative_prompt_embeds,
            arguments.pooled_prompt_embeds,
            arguments.negative_pooled_prompt_embeds,
            scale,
            arguments.clip_skip,
        )
        own, other = (torch.tensor([ids], dtype=torch.float32) for ids in self._time_ids(arguments, size))
        ids = repeat_rows(own, arguments.image_count)
        if negative is None or negative_pooled is None:
            return {
                "prompt_embeds": positive,
                "add_text_embeds": pooled,
                "add_time_ids": self._copy_to_device(ids),
            }
        return {
            "prompt_embeds": torch.cat([negative, positive]),
            "add_text_embeds": torch.cat([negative_pooled, pooled]),
            "add_time_ids": self._copy_to_device(torch.cat([repeat_rows(other, arguments.image_count), ids])),
        }

    def _time_ids(self, arguments: Any, size: Size) -> tuple[list[float], list[float]]:
        """Return the size conditioning (micro-conditioning) of the positive and the negative branch.

        As in diffusers, the negative branch uses the positive values unless both of its sizes are given.
        """
        own: list[float] = [
            *(arguments.original_size or size),
            *arguments.crops_coords_top_left,
            *(arguments.target_size or size),
        ]
        original, crop, target = (
            arguments.negative_original_size,
            arguments.negative_crops_coords_top_left,
            arguments.negative_target_size,
        )
        return own, own if original is None or target is None else [*original, *crop, *target]

    def _conditionings(self, tensors: Mapping[str, Any], pictures: int) -> list[dict[str, Conditioning]]:
        guidance = self._guidance_scale if self._model.facts.guides_itself else None
        channels = _extra_channels(tensors, pictures)
        parts = [
            split_branches(tensors[name], pictures)
            for name in ("prompt_embeds", "add_text_embeds", "add_time_ids")
        ]
        whole = all(negative is not None for negative, _ in parts)
        conditionings = []
        for row in range(pictures):
            found = {}
            for branch, name in enumerate(("negative", "positive")):
                if branch or whole:
                    context, pooled, ids = (part[branch][row : row + 1] for part in parts)  # type: ignore[index]
                    sizes = tuple(ids[0].tolist())
                    found[name] = Conditioning(context, pooled, sizes, channels[row], guidance)
            conditionings.append(found)
        return conditionings

    def _end_index(self, arguments: XLArguments) -> int | None:
        if arguments.denoising_end is None:
            return None
        cutoff = self._cutoff_timestep("denoising_end", arguments.denoising_end)
        return int((self.scheduler.timesteps >= cutoff).sum())

    def _cutoff_timestep(self, name: str, share: float) -> int:
        """Return the timestep at a fraction of the run.

        Raises:
            InvalidRequest: The fraction is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise InvalidRequest(f"{name} is {share}; expected a fraction of the run, between 0 and 1")
        return round(len(self.scheduler) * (1 - share))


class StableDiffusionXLImageFamily(StableDiffusionXLFamily):
    """Base of the XL pipelines for image-to-image and inpainting."""

    arguments_class: ClassVar[type[CallArguments]] = XLImageArguments

    def _time_ids(self, arguments: XLImageArguments, size: Size) -> tuple[list[float], list[float]]:
        original, crop = arguments.original_size or size, arguments.crops_coords_top_left
        negative, negative_crop = (
            arguments.negative_original_size or original,
            arguments.negative_crops_coords_top_left,
        )
        scores = arguments.aesthetic_score, arguments.negative_aesthetic_score
        if self._model.facts.sizes == 5:
            score, other = (
                default if given is None else given for given, default in zip(scores, (6.0, 2.5), strict=True)
            )
            return [*original, *crop, score], [*negative, *negative_crop, other]
        if scores != (None, None):
            raise InvalidRequest("aesthetic_score is for the refiner of XL", hint="leave it out")
        target = arguments.target_size or size
        # As in diffusers, both branches use the crop of the positive branch.
        return [*original, *crop, *target], [*negative, *crop, *(arguments.negative_target_size or target)]

    def _handover_index(self, arguments: XLImageArguments) -> int | None:
        if arguments.denoising_start is None:
            return None
        left = int(
            (
                self.scheduler.timesteps < self._cutoff_timestep("denoising_start", arguments.denoising_start)
            ).sum()
        )
        if self.scheduler.order == 2 and left % 2 == 0:
            left += 1
        return len(self.scheduler.timesteps) - left


def _extra_channels(tensors: Mapping[str, Any], pictures: int) -> list[Tensor | None]:
    """Return the extra U-Net input channels of each image, mask and masked image latents, or None."""
    if tensors.get("masked_image_latents") is None:
        return [None] * pictures
    rows = [tensors[name].float().cpu()[-pictures:] for name in ("mask", "masked_image_latents")]
    return [row[None] for row in torch.cat(rows, dim=1)]
