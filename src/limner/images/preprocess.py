"""Preprocessors: control images from images, by classical computer vision.

None of them runs a network. Control images that take one (depth, poses, segmentations) are given ready-made,
with the preprocessor "none".
"""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from limner.errors import InvalidRequest

from .opening import to_gray, to_mask, to_rgb

Preprocessor = Callable[..., Image.Image]


def preprocessed(image: Image.Image, name: str, **options: Any) -> Image.Image:
    """The control image of an image, of the same size: L if it is gray, else RGB.

    Args:
        image: In any mode; transparency counts as white.
        name: A name in `PREPROCESSORS`, or that of webui's ControlNet extension for the same; option values
            may follow in order, as in "canny:50:150".
        options: Options of the preprocessor by name.

    Raises:
        InvalidRequest: An unknown name or option, a value out of range, a preprocessor that is a network, or
            OpenCV is needed and not installed.
    """
    ours, settings = preprocessor(name)
    known = option_names(ours)
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise InvalidRequest(
            f"the preprocessor {ours} has no option {', '.join(unknown)}",
            hint=f"it has {', '.join(known)}" if known else "it has none",
        )
    return PREPROCESSORS[ours](image, **{**settings, **options})


def preprocessor(name: str) -> tuple[str, dict[str, float]]:
    """The name in `PREPROCESSORS`, and the options, that a name stands for. Raises as `preprocessed`."""
    word, *values = name.split(":")
    word = word.removesuffix(" (from white bg & black line)")  # which AUTOMATIC1111 appends
    ours, settings = _ELSEWHERE.get(word, (word, {}))
    if ours not in PREPROCESSORS:
        raise _unknown(word)
    options = list(inspect.signature(PREPROCESSORS[ours]).parameters.values())[1:]
    if len(values) > len(options):
        raise InvalidRequest(f"{name} gives {len(values)} options, but {ours} has {len(options)}")
    try:
        given = {
            option.name: type(option.default)(value) for option, value in zip(options, values, strict=False)
        }
    except ValueError as error:
        raise InvalidRequest(
            f"the preprocessor is given as {name}: {error}", hint="a name, and perhaps numbers: canny:50:150"
        ) from None
    return ours, {**settings, **given}


def _unknown(name: str) -> InvalidRequest:
    if name.startswith("inpaint"):
        return InvalidRequest(
            f"the preprocessor {name} needs a mask, and gives no image: it marks pixels with -1",
            hint='a request that has a mask takes "inpaint"; in Python, '
            "limner.images.preprocess.inpaint_condition",
        )
    for start, what in _READY_MADE.items():
        if name.startswith(start):
            return InvalidRequest(
                f"the preprocessor {name} is a network, which Limner does not have",
                hint=f'give {what} as a ready-made image, with the preprocessor "none"',
            )
    near = get_close_matches(name, [*PREPROCESSORS, *_ELSEWHERE], 1)
    return InvalidRequest(
        f"there is no preprocessor {name}; expected one of {', '.join(PREPROCESSORS)}",
        hint=f"did you mean {near[0]}?" if near else None,
    )


def option_names(name: str) -> tuple[str, ...]:
    """Names of a preprocessor's options, in the order of threshold_a and threshold_b in ControlNet's API."""
    return tuple(inspect.signature(PREPROCESSORS[name]).parameters)[1:]


def none(image: Image.Image) -> Image.Image:
    """The image itself, which is a control image already."""
    return Image.fromarray(_pixels(image))


def canny(image: Image.Image, low: float = 100.0, high: float = 200.0) -> Image.Image:
    """Thin white edges on black (Canny 1986).

    Args:
        low, high: Thresholds of the gradient: an edge starts above `high` and continues above `low`.
    """
    _require(0 <= low <= high, f"low is {low} and high is {high}", "0 or more, and low no more than high")
    return Image.fromarray(opencv().Canny(_pixels(image), low, high))


def lineart(image: Image.Image, sigma: float = 6.0) -> Image.Image:
    """Dark lines of a drawing, white on black: how much darker a pixel is than its surroundings.

    Args:
        sigma: Radius of the surroundings in pixels.
    """
    _require(0 < sigma <= 64, f"sigma is {sigma}", "more than 0, up to 64")
    x = _pixels(image).astype(np.float32)
    darker = np.min(opencv().GaussianBlur(x, (0, 0), sigma) - x, axis=2).clip(0, 255)
    lines = darker[darker > 8]
    # The median line becomes middle gray; below 16 it is the grain of the paper.
    usual = max(16.0, float(np.median(lines))) if lines.size else 16.0
    return Image.fromarray((darker / usual * 127).clip(0, 255).astype(np.uint8))


def scribble(image: Image.Image, level: float = 32.0) -> Image.Image:
    """Broad white strokes on black, by a difference of Gaussians (Winnemöller et al. 2012).

    Args:
        level: Threshold; a lower one gives more strokes.
    """
    _require(0 <= level <= 510, f"level is {level}", "0 to 510")
    x, blur = _pixels(image).astype(np.float32), opencv().GaussianBlur
    darker = np.min(blur(x, (0, 0), 5.0) - blur(x, (0, 0), 0.5), axis=2)
    return _white(2.0 * np.ceil(darker.clip(0, 255)) > level)


def softedge(image: Image.Image, sigma: float = 1.0) -> Image.Image:
    """Soft white edges on black: the gradient of the colour channel that changes most.

    It depends on contrast alone, while networks such as HED detect outlines.

    Args:
        sigma: Standard deviation in pixels of the blur that is applied first.
    """
    _require(0 < sigma <= 64, f"sigma is {sigma}", "more than 0, up to 64")
    cv2 = opencv()
    x = cv2.GaussianBlur(_pixels(image).astype(np.float32), (0, 0), sigma)
    slope = np.hypot(cv2.Sobel(x, cv2.CV_32F, 1, 0), cv2.Sobel(x, cv2.CV_32F, 0, 1)).max(axis=2)
    steep = max(16.0, float(np.percentile(slope, 99)))  # an image without edges stays black
    return Image.fromarray((slope / steep * 255).clip(0, 255).astype(np.uint8))


def tile(image: Image.Image, factor: float = 4.0) -> Image.Image:
    """The image without its details, which a tile ControlNet generates.

    Args:
        factor: Factor of scaling down and up again; 1 changes nothing.
    """
    _require(1 <= factor <= 64, f"factor is {factor}", "1 to 64")
    rgb = none(image)
    small = [max(1, int(side / factor)) for side in rgb.size]
    return rgb.resize((small[0], small[1]), Image.Resampling.BOX).resize(rgb.size, Image.Resampling.LANCZOS)


def blur(image: Image.Image, sigma: float = 9.0) -> Image.Image:
    """The image blurred, for a blur ControlNet.

    Args:
        sigma: Standard deviation in pixels.
    """
    _require(0 < sigma <= 64, f"sigma is {sigma}", "more than 0, up to 64")
    return Image.fromarray(opencv().GaussianBlur(_pixels(image), (0, 0), sigma))


def threshold(image: Image.Image, level: float = 127.0) -> Image.Image:
    """White where all three channels exceed a level from 0 to 255, else black."""
    _require(0 <= level <= 255, f"level is {level}", "0 to 255")
    return _white(_pixels(image).min(axis=2) > level)


def binary(image: Image.Image, level: float = 0.0) -> Image.Image:
    """White where the image is brighter than a level, 0 to 255, else black; 0 finds the level (Otsu 1979)."""
    _require(0 <= level <= 255, f"level is {level}", "0 to 255")
    cv2 = opencv()
    gray = cv2.cvtColor(_pixels(image), cv2.COLOR_RGB2GRAY)
    kind = cv2.THRESH_BINARY | (0 if level else cv2.THRESH_OTSU)
    return Image.fromarray(cv2.threshold(gray, level, 255, kind)[1])


def invert(image: Image.Image) -> Image.Image:
    """The negative: turns black lines on white into the white on black that ControlNets expect."""
    return ImageOps.invert(none(image))


def shuffle(image: Image.Image, cell: int = 256, seed: int = 0) -> Image.Image:
    """The image with its parts moved at random, which keeps its colours and textures but not its shapes.

    Args:
        cell: Distance in pixels over which neighbours stay together.
        seed: Seed of the displacement.
    """
    _require(2 <= cell <= 1024, f"cell is {cell}", "2 to 1024")
    cv2, pixels, rng = opencv(), _pixels(image), np.random.default_rng(seed)
    height, width = pixels.shape[:2]

    def places(length: int) -> NDArray[np.float32]:
        """A smooth random field over the image that takes all values from 0 to length - 1."""
        noise = rng.random((height // cell + 2, width // cell + 2), dtype=np.float32)
        field = cv2.resize(noise, (width + 2 * cell, height + 2 * cell), interpolation=cv2.INTER_CUBIC)
        field = field[cell : cell + height, cell : cell + width]
        span = max(float(np.ptp(field)), 1e-6)
        smooth: NDArray[np.float32] = ((field - field.min()) / span * (length - 1)).astype(np.float32)
        return smooth

    return Image.fromarray(cv2.remap(pixels, places(width), places(height), cv2.INTER_LINEAR))


def color(image: Image.Image, cell: int = 64) -> Image.Image:
    """The mean colours of a coarse grid, for T2I-Adapter's color.

    Args:
        cell: Side of a square in pixels.
    """
    _require(1 <= cell <= 4096, f"cell is {cell}", "1 to 4096")
    rgb = none(image)
    grid = [max(1, side // cell) for side in rgb.size]
    return rgb.resize((grid[0], grid[1]), Image.Resampling.BICUBIC).resize(rgb.size, Image.Resampling.NEAREST)


def normal(image: Image.Image, background: float = 0.4) -> Image.Image:
    """Surface normals of a depth map, as red, green and blue: x, y, z in [-1, 1].

    Args:
        image: Depth map, lighter is nearer; 8 or 16 bits.
        background: From 0 to 1; anything farther counts as a plane that faces the viewer.
    """
    _require(0 <= background <= 1, f"background is {background}", "0 to 1")
    cv2, depth = opencv(), to_gray(image)
    span = max(float(np.ptp(depth)), 1e-6)
    far = (depth - depth.min()) / span < background
    x, y = cv2.Sobel(depth, cv2.CV_32F, 1, 0), cv2.Sobel(depth, cv2.CV_32F, 0, 1)
    x[far] = y[far] = 0.0
    normals = np.stack([x, y, np.full_like(x, 2 * np.pi)], axis=2)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return Image.fromarray((normals * 127.5 + 127.5).clip(0, 255).astype(np.uint8))


def inpaint_condition(image: Image.Image, mask: Image.Image) -> NDArray[np.float32]:
    """Input of lllyasviel's inpaint ControlNet: float32 [H, W, 3] in [0, 1], and -1 where the mask, of the
    same size, is white."""
    if image.size != mask.size:
        raise InvalidRequest(f"the mask is {mask.size}, but the image is {image.size}")
    condition = (_pixels(image) / 255).astype(np.float32)
    condition[np.asarray(to_mask(mask)) > 127] = -1.0
    return condition


PREPROCESSORS: dict[str, Preprocessor] = {
    "none": none,
    "canny": canny,
    "lineart": lineart,
    "scribble": scribble,
    "softedge": softedge,
    "tile": tile,
    "blur": blur,
    "threshold": threshold,
    "binary": binary,
    "invert": invert,
    "shuffle": shuffle,
    "color": color,
    "normal": normal,
}

# Names of webui's ControlNet extension, with its defaults where they differ.
_ELSEWHERE: dict[str, tuple[str, dict[str, float]]] = {
    "lineart_standard": ("lineart", {}),
    "scribble_xdog": ("scribble", {}),
    "tile_resample": ("tile", {"factor": 1.0}),
    "blur_gaussian": ("blur", {}),
    "t2ia_color_grid": ("color", {}),
}

# How names of networks begin -> what they produce.
_READY_MADE = {
    "depth": "a depth map, nearer is whiter,",
    "normal_": 'a normal map (or a depth map, with the preprocessor "normal")',
    "openpose": "a drawing of the pose (`limner preprocess pose` makes one of key points)",
    "dw_openpose": "a drawing of the pose (`limner preprocess pose` makes one of key points)",
    "animal_openpose": "a drawing of the pose",
    "densepose": "a map of body parts",
    "mediapipe": "a drawing of the face",
    "lineart_": "line art, white on black,",
    "softedge_": "soft edges, white on black,",
    "hed": "soft edges, white on black,",
    "pidinet": "soft edges, white on black,",
    "te_hed": "soft edges, white on black,",
    "scribble_": "a scribble, white on black,",
    "t2ia_sketch": "a sketch, white on black,",
    "mlsd": "straight lines, white on black,",
    "seg": "a segmentation in the colours of its data set",
    "oneformer": "a segmentation in the colours of its data set",
}


def opencv() -> Any:
    """The module cv2. Raises InvalidRequest if OpenCV is not installed."""
    try:
        import cv2
    except ImportError:
        raise InvalidRequest(
            "this preprocessor needs OpenCV, which is not installed", hint='pip install "limner[control]"'
        ) from None
    return cv2


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels [H, W, 3], on white where the image is transparent."""
    return np.asarray(to_rgb(image))


def _white(where: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(where.astype(np.uint8) * np.uint8(255))


def _require(holds: bool, given: str, expected: str) -> None:
    if not holds:
        raise InvalidRequest(f"{given}; expected {expected}")
