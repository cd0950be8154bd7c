"""Draws OpenPose key points as ControlNets for poses expect them (Cao et al. 2017).

The body has the 18 points of COCO, each a dot in a colour of its own. Limbs are ellipses at 60 % of that
brightness, hands thin lines with blue dots, faces white dots.
"""

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.errors import InvalidRequest

from .preprocess import opencv

Point = tuple[float, float]
Points = list[Point | None]

# nose, neck, right shoulder, elbow, wrist, left ones, right hip, knee, ankle, left ones, eyes, ears
_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_COLOURS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
_OF_BODY_25 = (*range(8), *range(9, 19))  # without the middle of the hips, and the feet
_FINGERS = tuple((0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21))
_LARGEST = 16_384

_COUNTS = {
    "pose_keypoints_2d": (18, 25),
    "hand_left_keypoints_2d": (21,),
    "hand_right_keypoints_2d": (21,),
    "face_keypoints_2d": (68, 70),
}


def draw_pose(
    keypoints: Mapping[str, Any] | Sequence[Any], width: int | None = None, height: int | None = None
) -> Image.Image:
    """Skeletons on black, RGB.

    Args:
        keypoints: OpenPose's JSON: `people`, each with `pose_keypoints_2d` (x, y and confidence of 18 or 25
            points) and perhaps `hand_left_keypoints_2d`, `hand_right_keypoints_2d`, `face_keypoints_2d`; or
            a list of people, or of the points of each person's body. A point of confidence 0, or null, is
            not seen. Coordinates are pixels, or shares of width and height where all are at most 1.
        width, height: Size of the image in pixels. Default: `canvas_width` and `canvas_height`. If both are
            known, the pose is scaled from the canvas to this size.

    Raises:
        InvalidRequest: Other JSON, no known size, or OpenCV is not installed.
    """
    frame = _frame(keypoints)
    people = [_person(person, number) for number, person in enumerate(frame["people"], start=1)]
    canvas = _size(frame)
    size = width or (canvas or (0, 0))[0], height or (canvas or (0, 0))[1]
    if not all(0 < side <= _LARGEST for side in size):
        raise InvalidRequest(
            f"a pose is drawn at some size up to {_LARGEST}, but width is {size[0]} and height {size[1]}",
            hint="give width and height",
        )
    seen = [p for person in people for points in person.values() for p in points if p is not None]
    shares = all(max(point) <= 1 for point in seen)
    old = (1, 1) if shares else canvas or size
    scale = size[0] / old[0], size[1] / old[1]

    picture = np.zeros((size[1], size[0], 3), np.uint8)
    for person in people:
        moved = {
            part: [p and (p[0] * scale[0], p[1] * scale[1]) for p in points]
            for part, points in person.items()
        }
        _draw_body(picture, moved["pose_keypoints_2d"])
        _draw_hand(picture, moved["hand_left_keypoints_2d"])
        _draw_hand(picture, moved["hand_right_keypoints_2d"])
        _draw_dots(picture, moved["face_keypoints_2d"], 3, (255, 255, 255))
    return Image.fromarray(picture)


def _draw_body(picture: NDArray[np.uint8], points: Points) -> None:
    if not points:
        return
    cv2 = opencv()
    for (a, b), colour in zip(_LIMBS, _COLOURS, strict=False):  # the last colour is a joint's alone
        start, end = points[a], points[b]
        if start is None or end is None:
            continue
        (x0, y0), (x1, y1) = start, end
        centre = int((x0 + x1) / 2), int((y0 + y1) / 2)
        angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
        half = int(math.hypot(x0 - x1, y0 - y1) / 2)
        outline = cv2.ellipse2Poly(centre, (half, 4), angle, 0, 360, 1)
        cv2.fillConvexPoly(picture, outline, [int(c * 0.6) for c in colour])
    for point, colour in zip(points, _COLOURS, strict=True):
        _draw_dots(picture, [point], 4, colour)


def _draw_hand(picture: NDArray[np.uint8], points: Points) -> None:
    if not points:
        return
    for index, (a, b) in enumerate(_FINGERS):
        start, end = points[a], points[b]
        if start is not None and end is not None:
            colour = [255 * c for c in colorsys.hsv_to_rgb(index / len(_FINGERS), 1.0, 1.0)]
            opencv().line(picture, _whole(start), _whole(end), colour, thickness=2)
    _draw_dots(picture, points, 4, (0, 0, 255))


def _draw_dots(picture: NDArray[np.uint8], points: Points, radius: int, colour: tuple[int, int, int]) -> None:
    for point in points:
        if point is not None:
            opencv().circle(picture, _whole(point), radius, colour, thickness=-1)


def _whole(point: Point) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _frame(keypoints: Mapping[str, Any] | Sequence[Any]) -> Mapping[str, Any]:
    """Key points in any of their forms as {"people": [...], ...}."""
    if isinstance(keypoints, Mapping):
        frame = keypoints
    elif len(keypoints) == 1 and isinstance(keypoints[0], Mapping) and "people" in keypoints[0]:
        frame = keypoints[0]  # as pose editors save it: a list of frames
    else:
        frame = {"people": keypoints}
    if not isinstance(frame.get("people"), list | tuple):
        raise InvalidRequest(
            f"key points are expected as OpenPose's JSON, with a list 'people'; given: {', '.join(frame)}"
        )
    return frame


def _size(frame: Mapping[str, Any]) -> tuple[int, int] | None:
    """Size of the canvas, if the frame has it."""
    width, height = frame.get("canvas_width"), frame.get("canvas_height")
    if width is None and height is None:
        return None
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise InvalidRequest(f"canvas_width is {width!r} and canvas_height {height!r}; expected pixels")
    return width, height


def _person(person: Any, number: int) -> dict[str, Points]:
    """Points by part, empty for a part that is not given. The body has the 18 points of COCO."""
    given = person if isinstance(person, Mapping) else {"pose_keypoints_2d": person}
    parts = {}
    for part, counts in _COUNTS.items():
        points = _points(given.get(part) or [], f"{part} of person {number}")
        if points and len(points) not in counts:
            expected = " or ".join(map(str, counts))
            raise InvalidRequest(f"{part} of person {number} has {len(points)} points, expected {expected}")
        parts[part] = points
    if len(parts["pose_keypoints_2d"]) == 25:
        parts["pose_keypoints_2d"] = [parts["pose_keypoints_2d"][index] for index in _OF_BODY_25]
    return parts


def _points(values: Any, what: str) -> Points:
    """Points of a flat list of x, y, confidence, or of a list of [x, y], [x, y, confidence] and null."""
    try:
        if values and all(isinstance(value, int | float) for value in values):
            values = list(zip(values[::3], values[1::3], values[2::3], strict=True))
        points: Points = []
        for value in values:
            x, y, confidence = (*value, 1.0)[:3] if value else (0.0, 0.0, 0.0)
            if not (math.isfinite(x) and math.isfinite(y)):
                raise ValueError(f"{x}, {y}")
            points.append((float(x), float(y)) if confidence > 0 else None)
        return points
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{what} are not numbers in threes, x, y and confidence: {error}") from None
