"""The pipelines of Stable Diffusion 1.x and 2.x, and of XL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.errors import InvalidRequest
from limner.pipeline.adapting import UsedAdapter
from limner.pipeline.calls import Conditioning

from .drawing import Answers
from .noise import Generators
from .pictures import Box, Pictures, VaeImageProcessor, box_around, masks_of, pasted, pictures_of
from .pipelines import (
    Ask,
    DiffusionPipeline,
    Prompts,
    Size,
    StableDiffusionXLPipelineOutput,
    Start,
    each,
    halves,
    repeated,
)


class _StableDiffusion(DiffusionPipeline):
    """What the pipelines of 1.x and 2.x have in common."""

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
        """Embeddings [B, T, C] of prompts and of negative prompts, which are None without guidance.

        Args:
            device: no effect: they are on the pipeline's.
            clip_skip: layers before the last one; of negative prompts the last one counts, as in diffusers.
        """
        ask = Ask(prompt, prompt_embeds=prompt_embeds)
        adapters = self.used_adapters(self._model, lora_scale)
        if prompt_embeds is None:
            read = self._texts(repeated(prompt, ask.prompts, "prompt"), clip_skip, adapters)
            prompt_embeds = self._out(torch.cat([one.context for one in read]))
        positive = each(prompt_embeds, num_images_per_prompt)
        if not do_classifier_free_guidance:
            return positive, None
        if negative_prompt_embeds is None:
            texts = repeated(negative_prompt, ask.prompts, "negative_prompt")
            read = self._texts(texts, None, adapters)
            negative_prompt_embeds = self._out(torch.cat([one.context for one in read]))
        return positive, each(negative_prompt_embeds, num_images_per_prompt)

    def _told_tensors(self, ask: Ask, size: Size, scale: float | None) -> dict[str, Any]:
        positive, negative = self.encode_prompt(
            ask.prompt,
            None,
            ask.num_images_per_prompt,
            self.do_classifier_free_guidance,
            ask.negative_prompt,
            ask.prompt_embeds,
            ask.negative_prompt_embeds,
            scale,
            ask.clip_skip,
        )
        both = positive if negative is None else torch.cat([negative, positive])
        return {"prompt_embeds": both, "negative_prompt_embeds": negative}

    def _told(self, tensors: Mapping[str, Any], pictures: int) -> list[dict[str, Conditioning]]:
        guidance = self._guidance_scale if self._model.traits.guides_itself else None
        channels = _channels(tensors, pictures)
        negative, positive = halves(tensors["prompt_embeds"], pictures)
        branches = {"positive": positive} | ({} if negative is None else {"negative": negative})
        return [
            {
                name: Conditioning(rows[row : row + 1], channels=channels[row], guidance=guidance)
                for name, rows in branches.items()
            }
            for row in range(pictures)
        ]


@dataclass(frozen=True)
class AskXL(Ask):
    """What calls of XL may say besides."""

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
class AskXLPicture(AskXL):
    """What calls of XL that begin with a picture may say besides; aesthetic scores are for its refiner."""

    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    denoising_start: float | None = None


class _StableDiffusionXL(DiffusionPipeline):
    """What the pipelines of XL have in common."""

    component_names: ClassVar[tuple[str, ...]] = (
        *("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler"),
    )
    optional = ("text_encoder", "tokenizer")  # which the refiner does without
    ask: ClassVar[type[Ask]] = AskXL
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
        """Embeddings [B, T, C] of prompts and of negative prompts, then the pooled ones [B, P] of both.

        Those of negative prompts are None without guidance, and zero where none is given and the model wants
        it so.

        Args:
            prompt_2, negative_prompt_2: for the second text encoder; None is the same.
            device: no effect: they are on the pipeline's.
            clip_skip: layers before the last but one; of negative prompts that one counts, as in diffusers.
        """
        ask = Ask(prompt, prompt_embeds=prompt_embeds)
        adapters = self.used_adapters(self._model, lora_scale)
        times = num_images_per_prompt
        if prompt_embeds is None:
            first, second = (repeated(text, ask.prompts, "prompt") for text in (prompt, prompt_2 or prompt))
            prompt_embeds, pooled_prompt_embeds = self._both(first, second, clip_skip, adapters)
        if pooled_prompt_embeds is None:
            raise InvalidRequest("prompt_embeds were given without pooled_prompt_embeds")
        positive, pooled = each(prompt_embeds, times), each(pooled_prompt_embeds, times)
        if not do_classifier_free_guidance:
            return positive, None, pooled, None
        if negative_prompt_embeds is None and negative_prompt is None and self.force_zeros_for_empty_prompt:
            return positive, torch.zeros_like(positive), pooled, torch.zeros_like(pooled)
        if negative_prompt_embeds is None:
            first, second = (
                repeated(text, ask.prompts, "negative_prompt")
                for text in (negative_prompt, negative_prompt_2 or negative_prompt)
            )
            found = self._both(first, second, None, adapters)
            negative_prompt_embeds, negative_pooled_prompt_embeds = found
        if negative_pooled_prompt_embeds is None:
            raise InvalidRequest("negative_prompt_embeds were given without negative_pooled_prompt_embeds")
        negatives = each(negative_prompt_embeds, times), each(negative_pooled_prompt_embeds, times)
        return positive, negatives[0], pooled, negatives[1]

    def _both(
        self,
        first: Sequence[str],
        second: Sequence[str],
        clip_skip: int | None,
        adapters: tuple[UsedAdapter, ...],
    ) -> tuple[Tensor, Tensor]:
        """Embeddings and pooled embeddings of texts, which may be others for the second text encoder."""
        texts = self._model.checkpoint.text_configs
        width = texts["text_encoder"].hidden_size if "text_encoder" in texts else 0
        read = self._texts([*first, *second], clip_skip, adapters)
        one, other = read[: len(first)], read[len(first) :]
        contexts = [
            torch.cat([a.context[..., :width], b.context[..., width:]], dim=-1)
            for a, b in zip(one, other, strict=True)
        ]
        pooled = [conditioning.pooled for conditioning in other if conditioning.pooled is not None]
        return self._out(torch.cat(contexts)), self._out(torch.cat(pooled))

    def _told_tensors(self, ask: AskXL, size: Size, scale: float | None) -> dict[str, Any]:
        positive, negative, pooled, negative_pooled = self.encode_prompt(
            ask.prompt,
            ask.prompt_2,
            None,
            ask.num_images_per_prompt,
            self.do_classifier_free_guidance,
            ask.negative_prompt,
            ask.negative_prompt_2,
            ask.prompt_embeds,
            ask.negative_prompt_embeds,
            ask.pooled_prompt_embeds,
            ask.negative_pooled_prompt_embeds,
            scale,
            ask.clip_skip,
        )
        own, other = (torch.tensor([ids], dtype=torch.float32) for ids in self._time_ids(ask, size))
        ids = each(own, ask.pictures)
        if negative is None or negative_pooled is None:
            return {"prompt_embeds": positive, "add_text_embeds": pooled, "add_time_ids": self._out(ids)}
        return {
            "prompt_embeds": torch.cat([negative, positive]),
            "add_text_embeds": torch.cat([negative_pooled, pooled]),
            "add_time_ids": self._out(torch.cat([each(other, ask.pictures), ids])),
        }

    def _time_ids(self, ask: Any, size: Size) -> tuple[list[float], list[float]]:
        """What the U-Net is told of sizes, and in the negative branch: of the whole run if only one of its
        sizes is given."""
        own: list[float] = [
            *(ask.original_size or size),
            *ask.crops_coords_top_left,
            *(ask.target_size or size),
        ]
        original, crop, target = (
            ask.negative_original_size,
            ask.negative_crops_coords_top_left,
            ask.negative_target_size,
        )
        return own, own if original is None or target is None else [*original, *crop, *target]

    def _told(self, tensors: Mapping[str, Any], pictures: int) -> list[dict[str, Conditioning]]:
        guidance = self._guidance_scale if self._model.traits.guides_itself else None
        channels = _channels(tensors, pictures)
        parts = [
            halves(tensors[name], pictures) for name in ("prompt_embeds", "add_text_embeds", "add_time_ids")
        ]
        whole = all(negative is not None for negative, _ in parts)
        told = []
        for row in range(pictures):
            found = {}
            for branch, name in enumerate(("negative", "positive")):
                if branch or whole:
                    context, pooled, ids = (part[branch][row : row + 1] for part in parts)  # type: ignore[index]
                    sizes = tuple(ids[0].tolist())
                    found[name] = Conditioning(context, pooled, sizes, channels[row], guidance)
            told.append(found)
        return told

    def _end(self, ask: AskXL) -> int | None:
        if ask.denoising_end is None:
            return None
        cutoff = self._cutoff("denoising_end", ask.denoising_end)
        return int((self.scheduler.timesteps >= cutoff).sum())

    def _cutoff(self, name: str, share: float) -> int:
        """The timestep that lies at a share of the way.

        Raises:
            InvalidRequest: it is no share.
        """
        if not 0 < share < 1:
            raise InvalidRequest(f"{name} is {share}; expected a share of the way, between 0 and 1")
        return round(len(self.scheduler) * (1 - share))


class _StableDiffusionXLPicture(_StableDiffusionXL):
    """What the pipelines of XL that begin with a picture have in common."""

    ask: ClassVar[type[Ask]] = AskXLPicture

    def _time_ids(self, ask: AskXLPicture, size: Size) -> tuple[list[float], list[float]]:
        original, crop = ask.original_size or size, ask.crops_coords_top_left
        negative, negative_crop = ask.negative_original_size or original, ask.negative_crops_coords_top_left
        scores = ask.aesthetic_score, ask.negative_aesthetic_score
        if self._model.traits.sizes == 5:
            score, other = (
                default if given is None else given for given, default in zip(scores, (6.0, 2.5), strict=True)
            )
            return [*original, *crop, score], [*negative, *negative_crop, other]
        if scores != (None, None):
            raise InvalidRequest("aesthetic_score is for the refiner of XL", hint="leave it out")
        target = ask.target_size or size
        # The crop is that of the positive branch in both, as in diffusers.
        return [*original, *crop, *target], [*negative, *crop, *(ask.negative_target_size or target)]

    def _begun_at(self, ask: AskXLPicture) -> int | None:
        if ask.denoising_start is None:
            return None
        left = int((self.scheduler.timesteps < self._cutoff("denoising_start", ask.denoising_start)).sum())
        if self.scheduler.order == 2 and left % 2 == 0:
            left += 1
        return len(self.scheduler.timesteps) - left


def _channels(tensors: Mapping[str, Any], pictures: int) -> list[Tensor | None]:
    """What stands behind the latents' own channels, for each picture: a mask and what it leaves."""
    if tensors.get("masked_image_latents") is None:
        return [None] * pictures
    rows = [tensors[name].float().cpu()[-pictures:] for name in ("mask", "masked_image_latents")]
    return [row[None] for row in torch.cat(rows, dim=1)]


class _FromText(DiffusionPipeline):
    """Pictures that begin with noise."""

    def _from_noise(self, given: Mapping[str, Any], **more: Any) -> Any:
        """Draw pictures of a size that may be given; further arguments are those of `_call`."""
        named = {name: value for name, value in given.items() if name not in ("height", "width")}
        ask = self._asked(named)
        size = self._sized(given["height"], given["width"])
        return self._call(ask, size, lambda: Start(self._first(ask, size)), **more)


class StableDiffusionPipeline(_StableDiffusion, _FromText):
    """Text to picture with Stable Diffusion 1.x and 2.x."""

    @torch.no_grad()
    def __call__(
        self, prompt: Prompts = None, height: int | None = None, width: int | None = None, **given: Any
    ) -> Any:
        """Draw pictures.

        Args:
            height, width: in pixels; None is what the model was trained for.
            given: as in diffusers; `Ask` has them all.

        Raises:
            TypeError: an argument that is unknown.
            InvalidRequest: one that cannot be honoured.
        """
        return self._from_noise({"prompt": prompt, "height": height, "width": width, **given})


class StableDiffusionXLPipeline(_StableDiffusionXL, _FromText):
    """Text to picture with Stable Diffusion XL."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        height: int | None = None,
        width: int | None = None,
        **given: Any,
    ) -> Any:
        """Draw pictures. As `StableDiffusionPipeline`; `AskXL` has all arguments."""
        own = {"prompt": prompt, "prompt_2": prompt_2, "height": height, "width": width}
        return self._from_noise({**own, **given})


class _FromPicture(DiffusionPipeline):
    """Pictures that begin with another picture."""

    def _latents_of(self, pictures: Tensor, count: int, generator: Generators) -> Tensor:
        """Latents [B, C, h, w] for `count` pictures, drawn as the autoencoder says; given latents stay.

        Args:
            generator: if it is a list, as many of it as there are pictures draw.

        Raises:
            InvalidRequest: the pictures do not go into `count`.
        """
        if count % len(pictures):
            raise InvalidRequest(f"{len(pictures)} pictures were given for {count} to be drawn")
        if pictures.shape[1] == self._model.checkpoint.vae_config.latent_channels:
            given: Tensor = pictures.repeat(count // len(pictures), 1, 1, 1)
            return given
        if isinstance(generator, Sequence):
            generator = generator[: len(pictures)]
        means, spreads = Answers(self._model).encode(pictures)
        latents = means + spreads * self._drawn(means.shape, generator)
        return latents.repeat(count // len(latents), 1, 1, 1)

    def _begins_at(self, ask: Any, strength: float) -> tuple[int, bool]:
        """The first of the scheduler's timesteps that counts, and whether another pipeline left off there.

        Args:
            strength: the share of the steps that counts, where none has.

        Raises:
            InvalidRequest: it is no share, or leaves no step.
        """
        if not 0 <= strength <= 1:
            raise InvalidRequest(f"strength is {strength}; expected 0 to 1")
        begun, steps = self._begun_at(ask), self.scheduler.num_inference_steps
        own = (steps - min(int(steps * strength), steps)) * self.scheduler.order
        begin = own if begun is None else begun
        if begin >= len(self.scheduler.timesteps):
            raise InvalidRequest(f"strength is {strength}, which leaves no step to take", hint="raise it")
        return begin, begun is not None

    def _noisy(self, latents: Tensor, noise: Tensor, call: int) -> Tensor:
        """Latents with the noise of one of the scheduler's timesteps."""
        timestep = self.scheduler.timesteps[call : call + 1]
        noisy: Tensor = self.scheduler.add_noise(latents, noise, timestep.repeat(len(latents)))
        return noisy

    def _from_picture(
        self,
        ask: Any,
        image: Pictures | None,
        strength: float,
        **more: Any,
    ) -> Any:
        channels, unit = self._model.checkpoint.vae_config.latent_channels, self.vae_scale_factor
        pictures = pictures_of(image, latent_channels=channels)
        height, width = pictures.shape[2:]
        size = (height * unit, width * unit) if pictures.shape[1] == channels else (height, width)

        def start() -> Start:
            begin, goes_on = self._begins_at(ask, strength)
            if ask.latents is not None:
                return Start(ask.latents, begin)
            own = pictures
            if isinstance(ask.generator, Sequence) and ask.pictures % len(pictures) == 0:
                own = pictures.repeat(ask.pictures // len(pictures), 1, 1, 1)  # each draws for its own
            latents = self._latents_of(own, ask.pictures, ask.generator)
            if not goes_on:
                noise = self._drawn(latents.shape, ask.generator)
                latents = self._noisy(latents, noise, begin)
            return Start(latents, begin)

        return self._call(ask, size, start, **more)


class StableDiffusionImg2ImgPipeline(_StableDiffusion, _FromPicture):
    """Picture to picture with Stable Diffusion 1.x and 2.x."""

    @torch.no_grad()
    def __call__(
        self, prompt: Prompts = None, image: Pictures | None = None, strength: float = 0.8, **given: Any
    ) -> Any:
        """Draw a picture anew.

        Args:
            image: pictures, or latents; one for all, or as many as are drawn.
            strength: which share of the steps is taken, 0 to 1.
            given: as in diffusers; `Ask` has them all.
        """
        ask = self._asked({"prompt": prompt, **given})
        return self._from_picture(ask, image, strength)


class StableDiffusionXLImg2ImgPipeline(_StableDiffusionXLPicture, _FromPicture):
    """Picture to picture with Stable Diffusion XL and its refiner."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        image: Pictures | None = None,
        strength: float = 0.3,
        **given: Any,
    ) -> Any:
        """Draw a picture anew. As `StableDiffusionImg2ImgPipeline`; `AskXLPicture` has all arguments.

        With `denoising_start`, `image` are latents that another pipeline left on the way, and `strength` does
        not count.
        """
        ask = self._asked({"prompt": prompt, "prompt_2": prompt_2, **given})
        return self._from_picture(ask, image, strength)


class _Inpainting(_FromPicture):
    """Pictures that are drawn anew where a mask is white."""

    kinds = ("text", "inpainting")

    @property
    def mask_processor(self) -> VaeImageProcessor:
        """What makes tensors of masks."""
        return VaeImageProcessor(
            self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    def _inpaint(
        self,
        ask: Any,
        image: Pictures | None,
        mask_image: Pictures | None,
        size: Size,
        strength: float,
        padding: int | None = None,
        masked_image_latents: Tensor | None = None,
        **more: Any,
    ) -> Any:
        channels, made = self._model.checkpoint.vae_config.latent_channels, self._model.traits.kind
        box: Box | None = None
        if padding is not None:
            if not isinstance(image, Image.Image) or not isinstance(mask_image, Image.Image):
                raise InvalidRequest("padding_mask_crop is for PIL images, one picture and one mask")
            if ask.output_type != "pil":
                raise InvalidRequest(f"padding_mask_crop gives PIL images, not {ask.output_type!r}")
            box = box_around(mask_image, size, padding)
        pictures = pictures_of(image, size, latent_channels=channels, box=box)
        mask = masks_of(mask_image, size, box=box)

        def start() -> Start:
            begin, goes_on = self._begins_at(ask, strength)
            anew, count, generator = strength == 1.0 and not goes_on, ask.pictures, ask.generator
            latents = None
            if made == "text" or (ask.latents is None and not anew) or pictures.shape[1] == channels:
                latents = self._latents_of(pictures, count, generator)
            unit = self.vae_scale_factor
            shape = (count, channels, size[0] // unit, size[1] // unit)
            noise = self._drawn(shape, generator) if ask.latents is None else ask.latents.float().cpu()
            if ask.latents is not None or anew:
                first = noise * self.scheduler.init_noise_sigma
            else:
                assert latents is not None
                first = latents if goes_on else self._noisy(latents, noise, begin)
            if count % len(mask):
                raise InvalidRequest(f"{len(mask)} masks were given for {count} pictures")
            small = F.interpolate(mask, shape[2:]).repeat(count // len(mask), 1, 1, 1)
            left = masked_image_latents
            if left is None and pictures.shape[1] != channels:
                left = pictures * (mask < 0.5)
            if left is not None:  # which diffusers encodes, and so draws for, if it is needed or not
                left = self._latents_of(left.float().cpu(), count, generator)
            if made == "inpainting" and left is None:
                raise InvalidRequest(
                    "image holds latents, of which nothing can be masked", hint="give pixels"
                )
            tensors = {"mask": self._guided(small)}
            if made == "inpainting":
                return Start(first, begin, {**tensors, "masked_image_latents": self._guided(left)})

            def blend(number: int, drawn: Tensor) -> Tensor:
                call = begin + number + 1
                end = len(self.scheduler.timesteps)
                assert latents is not None
                kept = latents if call >= end else self._noisy(latents, noise, call)
                return kept + small * (drawn.float().cpu() - kept)

            return Start(first, begin, {**tensors, "masked_image_latents": None}, blend)

        def finish(images: list[Image.Image]) -> list[Image.Image]:
            if box is None:
                return images
            return [pasted(one, image, mask_image, box) for one in images]  # type: ignore[arg-type]

        return self._call(ask, size, start, finish=finish, **more)

    def _guided(self, tensor: Tensor | None) -> Tensor | None:
        """For both branches, as callbacks know it."""
        if tensor is None:
            return None
        return self._out(torch.cat([tensor, tensor]) if self.do_classifier_free_guidance else tensor)


class StableDiffusionInpaintPipeline(_StableDiffusion, _Inpainting):
    """Inpainting with Stable Diffusion 1.x and 2.x, whether they were made for it or not."""

    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (
        *_StableDiffusion._callback_tensor_inputs,
        "mask",
        "masked_image_latents",
    )

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        **given: Any,
    ) -> Any:
        """Draw a picture anew where a mask is white.

        Args:
            image, mask_image: pictures and masks, or latents in place of the first.
            masked_image_latents: of what the mask leaves, if they are not to be made of `image`.
            height, width: in pixels; None is what the model was trained for, whatever the picture's are.
            padding_mask_crop: draw only what lies around the mask, with so many pixels beside it.
            strength: which share of the steps is taken, 0 to 1.
            given: as in diffusers; `Ask` has them all.
        """
        ask = self._asked({"prompt": prompt, **given})
        size = self._sized(height, width)
        return self._inpaint(ask, image, mask_image, size, strength, padding_mask_crop, masked_image_latents)


class StableDiffusionXLInpaintPipeline(_StableDiffusionXLPicture, _Inpainting):
    """Inpainting with Stable Diffusion XL, whether it was made for it or not."""

    defaults: ClassVar[Mapping[str, Any]] = {"guidance_scale": 7.5}
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (
        *_StableDiffusionXL._callback_tensor_inputs,
        "mask",
        "masked_image_latents",
    )

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.9999,
        **given: Any,
    ) -> Any:
        """Draw a picture anew where a mask is white. As `StableDiffusionInpaintPipeline`; `AskXLPicture` has
        all arguments."""
        ask = self._asked({"prompt": prompt, "prompt_2": prompt_2, **given})
        size = self._sized(height, width)
        return self._inpaint(
            ask,
            image,
            mask_image,
            size,
            strength,
            padding_mask_crop,
            masked_image_latents,
        )
