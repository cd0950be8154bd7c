"""Training CLIP: encoders that map an image and its caption to similar vectors (Radford et al. 2021).

The loss is InfoNCE in both directions. A bag of words is enough to tell most images of a batch apart, so
each image is also contrasted with captions whose colours or sides are exchanged (Yuksekgonul et al. 2023,
arXiv:2210.01936).
"""

import json
import math
import random
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import InvalidRequest
from limner.images.pixels import from_pixels
from limner.nn.clip import CLIPTextModel, CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.prompts.tokenizer import Tokenizer

from .components import write_component
from .data import Dataset, seed_of, warn_of_long_captions
from .loop import Batch, Task
from .sheets import Sheet, sheet, stacked

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
PROJECTION = 128


def picturebook_vision(size: int) -> CLIPVisionConfig:
    """The small preset of the image encoder, for images of `size` pixels a side."""
    return CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        hidden_act="gelu",
        projection_dim=PROJECTION,
        image_size=size,
        patch_size=size // 8,
        projection=True,
    )


def with_projection(encoder: CLIPTextModel, channels: int) -> CLIPTextModel:
    """The text encoder with a projection of its pooled output: its own, or a new one to `channels`."""
    if encoder.config.projection:
        return encoder
    projected = CLIPTextModel(replace(encoder.config, projection=True, projection_dim=channels))
    projected.load_state_dict({**projected.state_dict(), **encoder.state_dict()})
    return projected


@dataclass(frozen=True)
class CLIPSettings:
    """What is trained, and on what.

    Attributes:
        batch_size: Number of images per step.
        train_text_encoder: Whether the text encoder is trained, or only its projection.
        hard_negatives: Number of false captions for each image.
        seed: Seed of the batches.
    """

    batch_size: int = 128
    train_text_encoder: bool = True
    hard_negatives: int = 2
    seed: int = 0


class Temperature(nn.Module):
    """The learned scale of the cosines, at most 100; initially 1 / 0.07."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, cosines: Tensor) -> Tensor:
        return cosines * self.logit_scale.clamp(max=math.log(100)).exp()


class CLIPTask(Task):
    """Two encoders and a temperature, on captioned images.

    Args:
        text_encoder, image_encoder: Networks with a projection to the same width.
        pictures: Images to train on.
        fresh: Images to measure retrieval on; the first 256 are used.

    Raises:
        InvalidRequest: Networks or images that do not fit each other.
    """

    def __init__(
        self,
        settings: CLIPSettings,
        text_encoder: CLIPTextModel,
        image_encoder: CLIPVisionModel,
        tokenizer: Tokenizer,
        pictures: Dataset,
        fresh: Dataset,
    ) -> None:
        text, vision = text_encoder.config, image_encoder.config
        if text.projection_dim != vision.projection_dim or not vision.projection:
            raise InvalidRequest(
                f"the text encoder projects to {text.projection_dim} values, the image encoder to "
                f"{vision.projection_dim if vision.projection else 'none'}; expected the same number"
            )
        if vision.image_size != pictures.size:
            raise InvalidRequest(
                f"images have {pictures.size} pixels a side, the image encoder takes {vision.image_size}"
            )
        self.how, self.pictures, self.fresh = settings, pictures, fresh
        self.text_encoder, self.image_encoder, self.tokenizer = text_encoder, image_encoder, tokenizer
        self.temperature = Temperature()
        self.modules = {"image_encoder": image_encoder, "temperature": self.temperature}
        self.frozen = {}
        if settings.train_text_encoder:
            self.modules["text_encoder"] = text_encoder
        else:
            self.frozen["text_encoder"] = text_encoder
            self.modules["text_projection"] = text_encoder.text_projection
        self.identity = {
            "kind": "clip",
            "text_encoder": text_encoder.config.to_dict(),
            "image_encoder": image_encoder.config.to_dict(),
            "train_text_encoder": settings.train_text_encoder,
        }
        self.settings = {**vars(settings), "pictures": pictures.identity}

    def prepare(self) -> None:
        self.pictures.pixels(0)  # fills a cache before the first batch waits for it
        warn_of_long_captions(self.pictures, self.tokenizer)

    def batch(self, index: int) -> Batch:
        """{"pixels": uint8 [B, H, W, 3], "ids": int64 [B + N, T]}; the true captions, then N false ones."""
        rng = random.Random(seed_of(self.how.seed, index))
        indices = [rng.randrange(len(self.pictures)) for _ in range(self.how.batch_size)]
        true = [self.pictures.caption(chosen, rng) for chosen in indices]
        false = [text for chosen in indices for text in self._false(self.pictures, chosen, rng)]
        pixels = torch.stack([torch.from_numpy(self.pictures.pixels(chosen).copy()) for chosen in indices])
        return {"pixels": pixels, "ids": self._ids(true + false)}

    def _false(self, pictures: Dataset, index: int, rng: random.Random) -> list[str]:
        captions = pictures.false_captions(index, rng)
        return rng.sample(captions, min(self.how.hard_negatives, len(captions)))

    def _ids(self, captions: list[str]) -> Tensor:
        return torch.tensor([self.tokenizer.encode_padded(caption)[0] for caption in captions])

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images, texts = self.embed_images(batch["pixels"]), self.embed_texts(batch["ids"])
        logits = self.temperature(images @ texts.T)  # [B, B + N]
        truth = torch.arange(len(images), device=logits.device)
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits[:, : len(images)].T, truth)) / 2
        return loss, {"accuracy": (logits.argmax(1) == truth).float().mean().detach()}

    def embed_images(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to unit vectors [B, D], float32."""
        mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (MEAN, STD))
        pooled = self.image_encoder(((from_pixels(pixels) + 1) / 2 - mean) / std)[1]
        return F.normalize(pooled.float(), dim=-1)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """[B, T] to unit vectors [B, D], float32."""
        return F.normalize(self.text_encoder(ids)[1].float(), dim=-1)

    @cached_property
    def _fresh(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Images, the ids of their captions, and for each the ids of its false captions."""
        pixels = stacked(self.fresh, 256)
        rng = random.Random(0)
        true = self._ids([self.fresh.caption(index, rng) for index in range(len(pixels))])
        return (
            pixels,
            true,
            [self._ids(self.fresh.false_captions(index, rng)) for index in range(len(pixels))],
        )

    def validate(self) -> dict[str, float]:
        """Retrieval among fresh images, and how often their captions beat all their false ones."""
        pixels, true, false = self._fresh
        images = torch.cat([self.embed_images(part.to(self.device)) for part in torch.split(pixels, 64)])
        texts = torch.cat([self.embed_texts(part.to(self.device)) for part in torch.split(true, 64)])
        cosines = images @ texts.T
        truth = torch.arange(len(images), device=cosines.device)
        figures = {
            "image_to_text": float((cosines.argmax(1) == truth).float().mean()),
            "text_to_image": float((cosines.argmax(0) == truth).float().mean()),
        }
        tried = [(i, ids) for i, ids in enumerate(false) if len(ids)]
        if tried:
            wins = [
                cosines[i, i] > (self.embed_texts(ids.to(self.device)) @ images[i]).max() for i, ids in tried
            ]
            figures["true_over_false"] = sum(map(bool, wins)) / len(wins)
        return figures

    def samples(self) -> Sheet:
        """For eight fresh captions: each one's image, and below it the one that the encoders find."""
        pixels, true, _ = self._fresh
        images = torch.cat([self.embed_images(part.to(self.device)) for part in torch.split(pixels, 64)])
        found = (self.embed_texts(true[:8].to(self.device)) @ images.T).argmax(1).cpu()
        return sheet(from_pixels(torch.cat([pixels[:8], pixels[found]])), columns=8)

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """`text_encoder`, `image_encoder`, `tokenizer` and `feature_extractor` in the hub's layout."""
        write_component(folder / "text_encoder", self.text_encoder, self.text_encoder.config.to_dict(), dtype)
        write_component(
            folder / "image_encoder", self.image_encoder, self.image_encoder.config.to_dict(), dtype
        )
        self.tokenizer.save(folder / "tokenizer")
        size = self.image_encoder.config.image_size
        preprocessing = {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": size, "width": size},
            "size": {"shortest_edge": size},
            "image_mean": MEAN,
            "image_std": STD,
        }
        (folder / "feature_extractor").mkdir(exist_ok=True)
        (folder / "feature_extractor" / "preprocessor_config.json").write_text(
            json.dumps(preprocessing, indent=2)
        )
