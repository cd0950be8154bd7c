"""`python -m benchmarks.watermark`: what the watermark of images withstands, and false alarms.

Drawings of the picture world are marked with the published key and ids of their own, changed as the rows
say, and searched for their mark. Found means that all bits of the id were read. Images without a mark are
searched as they are, and as a crop in JPEG of quality 75.
"""

import argparse
import io
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from limner.picturebook.drawing import render
from limner.picturebook.world import World
from limner.safety.watermark import ID_BITS, detect, embed

from .harness import Chart, Report, Spread, Table, parser, say

_SEED, _UNMARKED_SEED = 1, 2
_UNMARKED_SIZE = 256


def encoded(image: Image.Image, format: str, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format, quality=quality)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image, removed: float) -> Image.Image:
    """Without a share of its width and height, not in the middle."""
    width, height = (round(length * (1 - removed)) for length in image.size)
    left, top = round((image.width - width) * 0.6), round((image.height - height) * 0.4)
    return image.crop((left, top, left + width, top + height))


def scaled(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def there_and_back(image: Image.Image, scale: float) -> Image.Image:
    return scaled(image, scale).resize(image.size, Image.Resampling.BICUBIC)


def noisy(image: Image.Image, deviation: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0.0, deviation, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


Attack = Callable[[Image.Image], Image.Image]

ATTACKS: dict[str, Attack] = {
    "none": lambda image: image,
    **{f"JPEG {quality}": lambda image, q=quality: encoded(image, "JPEG", q) for quality in (90, 75, 50, 30)},
    **{f"WebP {quality}": lambda image, q=quality: encoded(image, "WEBP", q) for quality in (80, 60)},
    "10 % cropped": lambda image: cropped(image, 0.1),
    "10 % cropped, JPEG 75": lambda image: encoded(cropped(image, 0.1), "JPEG", 75),
    "50 % cropped": lambda image: cropped(image, 0.5),
    "halved and enlarged again": lambda image: there_and_back(image, 0.5),
    "doubled and reduced again": lambda image: there_and_back(image, 2.0),
    "Gaussian blur of 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "noise of 5 of 255": lambda image: noisy(image, 5.0),
    "30 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "30 % less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "rotated by 1 degree": lambda image: image.rotate(1.0, Image.Resampling.BICUBIC),
}
SCALES: dict[str, Attack] = {
    "halved": lambda image: scaled(image, 0.5),
    "to 0.8, JPEG 75": lambda image: encoded(scaled(image, 0.8), "JPEG", 75),
    "10 % cropped, to 0.8, JPEG 75": lambda image: encoded(scaled(cropped(image, 0.1), 0.8), "JPEG", 75),
    "10 % cropped, to 0.73, JPEG 80": lambda image: encoded(scaled(cropped(image, 0.1), 0.73), "JPEG", 80),
    "doubled": lambda image: scaled(image, 2.0),
}


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return float(10.0 * np.log10(255.0**2 / np.mean(error**2)))


def ssim(first: Image.Image, second: Image.Image) -> float:
    """Structural similarity of the brightness (Wang et al. 2004), with square windows of 8 pixels."""

    def means(values: np.ndarray) -> np.ndarray:
        sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        return (sums[8:, 8:] - sums[8:, :-8] - sums[:-8, 8:] + sums[:-8, :-8]) / 64.0

    a, b = (np.asarray(image.convert("F"), np.float64) for image in (first, second))
    mean_a, mean_b = means(a), means(b)
    var_a, var_b = means(a * a) - mean_a**2, means(b * b) - mean_b**2
    both = means(a * b) - mean_a * mean_b
    low, high = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + low) * (2 * both + high)
    return float(np.mean(likeness / ((mean_a**2 + mean_b**2 + low) * (var_a + var_b + high))))


def drawings(count: int, size: int, seed: int) -> list[Image.Image]:
    rng = random.Random(f"{seed} {size}")
    return [render(World().sample(rng), size) for _ in range(count)]


def measured(size: int, count: int, searched: int) -> dict[str, Any]:
    """Figures of `count` images of one size, the first `searched` of them also over scales."""
    say(f"{count} images of {size} pixels")
    rng = random.Random(size)
    ids = [rng.getrandbits(ID_BITS) for _ in range(count)]
    images = drawings(count, size, _SEED)
    seconds, marked = [], []
    for image, id in zip(images, ids, strict=True):
        began = time.process_time()
        marked.append(embed(image, id))
        seconds.append(time.process_time() - began)

    def found(attack: Attack, number: int, *, search: bool = False) -> bool:
        mark = detect(attack(marked[number]), search_scales=search)
        return mark is not None and mark.id == ids[number] >> (ID_BITS - mark.bits)

    return {
        "images": count,
        "PSNR": [psnr(*pair) for pair in zip(images, marked, strict=True)],
        "SSIM": [ssim(*pair) for pair in zip(images, marked, strict=True)],
        "seconds": seconds,
        "found": {
            name: float(np.mean([found(attack, number) for number in range(count)]))
            for name, attack in ATTACKS.items()
        },
        "searched": min(searched, count),
        "found over scales": {
            name: float(np.mean([found(attack, n, search=True) for n in range(min(searched, count))]))
            for name, attack in SCALES.items()
        },
    }


def false_alarms(count: int, searched: int) -> dict[str, int]:
    """How many images without a mark were searched, and in how many one was found."""
    say(f"{count} images without a mark")
    images = drawings(count, _UNMARKED_SIZE, _UNMARKED_SEED)
    copies = [*images, *(encoded(cropped(image, 0.1), "JPEG", 75) for image in images)]
    over_scales = images[:searched]
    return {
        "images": len(copies),
        "found": sum(detect(image) is not None for image in copies),
        "images over scales": len(over_scales),
        "found over scales": sum(detect(image, search_scales=True) is not None for image in over_scales),
    }


def report(sizes: dict[int, dict[str, Any]], alarms: dict[str, int]) -> Report:
    made = Report("watermark", "The watermark", " ".join((__doc__ or "").split("\n\n", 1)[1].split()))
    columns = ("", *(f"{size} pixels" for size in sizes))
    figures = {
        "images": [str(each["images"]) for each in sizes.values()],
        "PSNR, least": [f"{min(each['PSNR']):.1f} dB" for each in sizes.values()],
        "PSNR, median": [f"{np.median(each['PSNR']):.1f} dB" for each in sizes.values()],
        "SSIM, least": [f"{min(each['SSIM']):.3f}" for each in sizes.values()],
        "SSIM, median": [f"{np.median(each['SSIM']):.3f}" for each in sizes.values()],
        "processor time to embed": [f"{1e3 * np.median(each['seconds']):.1f} ms" for each in sizes.values()],
    }
    made.tables.append(Table("How faint it is", columns, [(name, *row) for name, row in figures.items()]))
    for title, part, attacks in (
        ("Found at the size of the copy", "found", ATTACKS),
        ("Found by the search over scales", "found over scales", SCALES),
    ):
        rows = [(name, *(f"{each[part][name]:.1%}" for each in sizes.values())) for name in attacks]
        made.tables.append(Table(title, columns, rows))
    searched = [(name, str(number)) for name, number in alarms.items()]
    made.tables.append(Table("Images without a mark", ("", "number"), searched))
    for size, each in sizes.items():
        bars = {name: Spread.of([100.0 * share]) for name, share in each["found"].items()}
        made.charts.append(Chart(f"Found in images of {size} pixels", "%", bars))
    made.data = {"sizes": {str(size): each for size, each in sizes.items()}, "without a mark": alarms}
    return made


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=1)
    options.add_argument("--images", type=int, default=1000, help="number of marked images of each size")
    options.add_argument("--searched", type=int, default=100, help="how many of them also over scales")
    options.add_argument("--unmarked", type=int, default=5000, help="number of images without a mark")
    options.add_argument("--sizes", type=int, nargs="+", default=[128, 512], help="pixels a side")
    return options.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.quick:
        options.images, options.searched, options.unmarked, options.sizes = 2, 1, 4, [256]
    sizes = {size: measured(size, options.images, options.searched) for size in options.sizes}
    report(sizes, false_alarms(options.unmarked, options.searched)).publish(options)


if __name__ == "__main__":
    main()
