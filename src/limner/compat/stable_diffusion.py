"""The pipelines of Stable Diffusion 1.x, 2.x and XL."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.errors import InvalidRequest

from .calling import InitialState, Prompts, Size
from .families import (
    StableDiffusionFamily,
    StableDiffusionXLFamily,
    StableDiffusionXLImageFamily,
)
from .images import (
    Box,
    ImageInput,
    VaeImageProcessor,
    crop_box,
    image_tensor,
    mask_tensor,
    paste_where_masked,
)
from .lockstep import EngineCalls
from .noise import Generators
from .pipelines import DiffusionPipeline


class _TextToImage(DiffusionPipeline):
    """Base of the text-to-image pipelines."""

    def _text_to_image(self, given: Mapping[str, Any], **more: Any) -> Any:
        """Generate images from call arguments that may have `height` and `width`; `more` goes to `_run`."""
        named = {name: value for name, value in given.items() if name not in ("height", "width")}
        arguments = self._parse_arguments(named)
        size = self._size_or_default(given["height"], given["width"])
        return self._run(
            arguments, size, lambda: InitialState(self._initial_latents(arguments, size)), **more
        )


class StableDiffusionPipeline(StableDiffusionFamily, _TextToImage):
    """Text to image with Stable Diffusion 1.x and 2.x."""

    @torch.no_grad()
    def __call__(
        self, prompt: Prompts = None, height: int | None = None, width: int | None = None, **given: Any
    ) -> Any:
        """Generate images.

        Args:
            height, width: Image size in pixels; None is the size that the model was trained at.
            given: Further arguments of diffusers; `CallArguments` lists them.

        Raises:
            TypeError: An argument is unknown.
            InvalidRequest: An argument is not supported.
        """
        return self._text_to_image({"prompt": prompt, "height": height, "width": width, **given})


class StableDiffusionXLPipeline(StableDiffusionXLFamily, _TextToImage):
    """Text to image with Stable Diffusion XL."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        height: int | None = None,
        width: int | None = None,
        **given: Any,
    ) -> Any:
        """Generate images as `StableDiffusionPipeline` does; `XLArguments` lists all arguments."""
        own = {"prompt": prompt, "prompt_2": prompt_2, "height": height, "width": width}
        return self._text_to_image({**own, **given})


class _ImageToImage(DiffusionPipeline):
    """Base of the image-to-image pipelines."""

    def _encode_images(self, pictures: Tensor, count: int, generator: Generators) -> Tensor:
        """Return latents [count, C, h, w], sampled from the autoencoder's distribution; latents pass
        unchanged.

        Args:
            pictures: Images [B, 3, H, W] in [-1, 1], or latents [B, C, h, w]; B divides `count`.
            generator: Generator of the sample. Of a list, the first B are used.

        Raises:
            InvalidRequest: B does not divide `count`.
        """
        if count % len(pictures):
            raise InvalidRequest(f"{len(pictures)} input images were given for {count} output images")
        if pictures.shape[1] == self._model.checkpoint.vae_config.latent_channels:
            given: Tensor = pictures.repeat(count // len(pictures), 1, 1, 1)
            return given
        if isinstance(generator, Sequence):
            generator = generator[: len(pictures)]
        means, spreads = EngineCalls(self._model).encode(pictures)
        latents = means + spreads * self._draw_noise(means.shape, generator)
        return latents.repeat(count // len(latents), 1, 1, 1)

    def _begin_index(self, arguments: Any, strength: float) -> tuple[int, bool]:
        """Return the index of the first timestep to run, and whether another pipeline stopped there.

        Args:
            strength: Fraction of the steps to run, 0 to 1; not used if another pipeline stopped.

        Raises:
            InvalidRequest: `strength` is outside 0 to 1, or leaves no step.
        """
        if not 0 <= strength <= 1:
            raise InvalidRequest(f"strength is {strength}; expected 0 to 1")
        handover, steps = self._handover_index(arguments), self.scheduler.num_inference_steps
        own = (steps - min(int(steps * strength), steps)) * self.scheduler.order
        begin = own if handover is None else handover
        if begin >= len(self.scheduler.timesteps):
            raise InvalidRequest(f"strength is {strength}, which leaves no step to run", hint="raise it")
        return begin, handover is not None

    def _add_noise(self, latents: Tensor, noise: Tensor, call: int) -> Tensor:
        """Add noise to latents at the level of the timestep with index `call`."""
        timestep = self.scheduler.timesteps[call : call + 1]
        noisy: Tensor = self.scheduler.add_noise(latents, noise, timestep.repeat(len(latents)))
        return noisy

    def _image_to_image(
        self,
        arguments: Any,
        image: ImageInput | None,
        strength: float,
        **more: Any,
    ) -> Any:
        channels, unit = self._model.checkpoint.vae_config.latent_channels, self.vae_scale_factor
        pictures = image_tensor(image, latent_channels=channels)
        height, width = pictures.shape[2:]
        size = (height * unit, width * unit) if pictures.shape[1] == channels else (height, width)

        def start() -> InitialState:
            begin, handed_over = self._begin_index(arguments, strength)
            if arguments.latents is not None:
                return InitialState(arguments.latents, begin)
            own = pictures
            if isinstance(arguments.generator, Sequence) and arguments.image_count % len(pictures) == 0:
                own = pictures.repeat(
                    arguments.image_count // len(pictures), 1, 1, 1
                )  # each generator samples its own latents
            latents = self._encode_images(own, arguments.image_count, arguments.generator)
            if not handed_over:
                noise = self._draw_noise(latents.shape, arguments.generator)
                latents = self._add_noise(latents, noise, begin)
            return InitialState(latents, begin)

        return self._run(arguments, size, start, **more)


class StableDiffusionImg2ImgPipeline(StableDiffusionFamily, _ImageToImage):
    """Image to image with Stable Diffusion 1.x and 2.x."""

    @torch.no_grad()
    def __call__(
        self, prompt: Prompts = None, image: ImageInput | None = None, strength: float = 0.8, **given: Any
    ) -> Any:
        """Generate variations of an image.

        Args:
            image: Input images or latents: one for all, or one per output image.
            strength: Denoising strength: the fraction of the steps to run, 0 to 1.
            given: Further arguments of diffusers; `CallArguments` lists them.
        """
        arguments = self._parse_arguments({"prompt": prompt, **given})
        return self._image_to_image(arguments, image, strength)


class StableDiffusionXLImg2ImgPipeline(StableDiffusionXLImageFamily, _ImageToImage):
    """Image to image with Stable Diffusion XL and its refiner."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        image: ImageInput | None = None,
        strength: float = 0.3,
        **given: Any,
    ) -> Any:
        """Generate variations of an image as `StableDiffusionImg2ImgPipeline` does.

        With `denoising_start`, `image` holds the partly denoised latents of another pipeline, and `strength`
        has no effect. `XLImageArguments` lists all arguments.
        """
        arguments = self._parse_arguments({"prompt": prompt, "prompt_2": prompt_2, **given})
        return self._image_to_image(arguments, image, strength)


class _Inpainting(_ImageToImage):
    """Base of the inpainting pipelines."""

    unet_kinds = ("text", "inpainting")

    @property
    def mask_processor(self) -> VaeImageProcessor:
        """Converter of masks to tensors."""
        return VaeImageProcessor(
            self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    def _inpaint(
        self,
        arguments: Any,
        image: ImageInput | None,
        mask_image: ImageInput | None,
        size: Size,
        strength: float,
        padding: int | None = None,
        masked_image_latents: Tensor | None = None,
        **more: Any,
    ) -> Any:
        channels, made = self._model.checkpoint.vae_config.latent_channels, self._model.facts.kind
        box: Box | None = None
        if padding is not None:
            if not isinstance(image, Image.Image) or not isinstance(mask_image, Image.Image):
                raise InvalidRequest("padding_mask_crop takes PIL images: one image and one mask")
            if arguments.output_type != "pil":
                raise InvalidRequest(f"padding_mask_crop gives PIL images, not {arguments.output_type!r}")
            box = crop_box(mask_image, size, padding)
        pictures = image_tensor(image, size, latent_channels=channels, box=box)
        mask = mask_tensor(mask_image, size, box=box)

        def start() -> InitialState:
            begin, handed_over = self._begin_index(arguments, strength)
            full_noise, count, generator = (
                strength == 1.0 and not handed_over,
                arguments.image_count,
                arguments.generator,
            )
            latents = None
            if (
                made == "text"
                or (arguments.latents is None and not full_noise)
                or pictures.shape[1] == channels
            ):
                latents = self._encode_images(pictures, count, generator)
            unit = self.vae_scale_factor
            shape = (count, channels, size[0] // unit, size[1] // unit)
            noise = (
                self._draw_noise(shape, generator)
                if arguments.latents is None
                else arguments.latents.float().cpu()
            )
            if arguments.latents is not None or full_noise:
                first = noise * self.scheduler.init_noise_sigma
            else:
                assert latents is not None
                first = latents if handed_over else self._add_noise(latents, noise, begin)
            if count % len(mask):
                raise InvalidRequest(f"{len(mask)} masks were given for {count} images")
            small = F.interpolate(mask, shape[2:]).repeat(count // len(mask), 1, 1, 1)
            left = masked_image_latents
            if left is None and pictures.shape[1] != channels:
                left = pictures * (mask < 0.5)
            if left is not None:  # encoded even if unused: as in diffusers, it advances the generator
                left = self._encode_images(left.float().cpu(), count, generator)
            if made == "inpainting" and left is None:
                raise InvalidRequest("image holds latents, which cannot be masked", hint="give pixels")
            tensors = {"mask": self._for_branches(small)}
            if made == "inpainting":
                return InitialState(
                    first, begin, {**tensors, "masked_image_latents": self._for_branches(left)}
                )

            def blend(number: int, drawn: Tensor) -> Tensor:
                call = begin + number + 1
                end = len(self.scheduler.timesteps)
                assert latents is not None
                kept = latents if call >= end else self._add_noise(latents, noise, call)
                return kept + small * (drawn.float().cpu() - kept)

            return InitialState(first, begin, {**tensors, "masked_image_latents": None}, blend)

        def finish(images: list[Image.Image]) -> list[Image.Image]:
            if box is None:
                return images
            return [paste_where_masked(one, image, mask_image, box) for one in images]  # type: ignore[arg-type]

        return self._run(arguments, size, start, finish=finish, **more)

    def _for_branches(self, tensor: Tensor | None) -> Tensor | None:
        """Duplicate a tensor for both guidance branches, as callbacks see it."""
        if tensor is None:
            return None
        return self._copy_to_device(
            torch.cat([tensor, tensor]) if self.do_classifier_free_guidance else tensor
        )


class StableDiffusionInpaintPipeline(StableDiffusionFamily, _Inpainting):
    """Inpainting with Stable Diffusion 1.x and 2.x: inpainting models and others."""

    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (
        *StableDiffusionFamily._callback_tensor_inputs,
        "mask",
        "masked_image_latents",
    )

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        **given: Any,
    ) -> Any:
        """Regenerate an image where the mask is white.

        Args:
            image: Input images or latents.
            mask_image: Masks: white is regenerated, black is kept.
            masked_image_latents: Latents of the image without its masked area; None encodes them from
                `image`.
            height, width: Output size in pixels; None is the size that the model was trained at, whatever the
                size of `image`.
            padding_mask_crop: Padding in pixels around the mask's bounding box. If set, only this crop is
                regenerated, at the output size.
            strength: Denoising strength: the fraction of the steps to run, 0 to 1.
            given: Further arguments of diffusers; `CallArguments` lists them.
        """
        arguments = self._parse_arguments({"prompt": prompt, **given})
        size = self._size_or_default(height, width)
        return self._inpaint(
            arguments, image, mask_image, size, strength, padding_mask_crop, masked_image_latents
        )


class StableDiffusionXLInpaintPipeline(StableDiffusionXLImageFamily, _Inpainting):
    """Inpainting with Stable Diffusion XL: inpainting models and others."""

    defaults: ClassVar[Mapping[str, Any]] = {"guidance_scale": 7.5}
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (
        *StableDiffusionXLFamily._callback_tensor_inputs,
        "mask",
        "masked_image_latents",
    )

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        prompt_2: Prompts = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.9999,
        **given: Any,
    ) -> Any:
        """Regenerate an image where the mask is white, as `StableDiffusionInpaintPipeline` does.
        `XLImageArguments` lists all arguments."""
        arguments = self._parse_arguments({"prompt": prompt, "prompt_2": prompt_2, **given})
        size = self._size_or_default(height, width)
        return self._inpaint(
            arguments,
            image,
            mask_image,
            size,
            strength,
            padding_mask_crop,
            masked_image_latents,
        )
