"""Skeletons from OpenPose's key points."""

import json

import numpy as np
import pytest
from PIL import Image

from limner.errors import InvalidRequest
from limner.images.pose import draw_pose

STANDING = [
    *((100, 40), (100, 70), (80, 70), (70, 100), (65, 130), (120, 70), (130, 100), (135, 130)),
    *((90, 130), (88, 170), (86, 210), (110, 130), (112, 170), (114, 210)),
    *((95, 35), (105, 35), (88, 38), (112, 38)),
]
SEEN = [[x, y, 0.9] for x, y in STANDING]
FLAT = [value for point in SEEN for value in point]


def pixel(picture, x, y):
    return tuple(np.asarray(picture)[y, x].tolist())


@pytest.fixture
def standing():
    return draw_pose({"people": [{"pose_keypoints_2d": FLAT}]}, 256, 256)


def test_joints_have_their_colours(standing):
    assert standing.size == (256, 256)
    for (x, y), colour in zip(
        STANDING[:6],
        [(255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)],
        strict=True,
    ):
        assert pixel(standing, x, y) == colour
    assert pixel(standing, *STANDING[17]) == (255, 0, 85)
    assert pixel(standing, 5, 5) == (0, 0, 0)


def test_limbs_are_ellipses_in_sixty_per_cent_of_their_colour(standing):
    # The right thigh, from (90, 130) to (88, 170), is the eighth limb.
    assert pixel(standing, 89, 150) == (0, 153, 51)
    assert pixel(standing, 85, 150) == (0, 153, 51)  # 4 pixels to the left in its middle
    assert pixel(standing, 83, 150) == (0, 0, 0)
    assert pixel(standing, 86, 137) == (0, 0, 0)  # thinner at its ends


@pytest.mark.parametrize(
    "keypoints",
    [
        {"people": [{"pose_keypoints_2d": FLAT}]},
        [{"people": [{"pose_keypoints_2d": FLAT}], "canvas_width": 256, "canvas_height": 256}],
        {"people": [{"pose_keypoints_2d": SEEN, "face_keypoints_2d": None, "hand_left_keypoints_2d": []}]},
        {"people": [{"pose_keypoints_2d": [v for x, y, c in SEEN for v in (x / 256, y / 256, c)]}]},
        [FLAT],
        [STANDING],
        json.loads(
            json.dumps(
                {
                    "people": [{"pose_keypoints_2d": [v for x, y, c in SEEN for v in (x / 2, y / 2, c)]}],
                    "canvas_width": 128,
                    "canvas_height": 128,
                }
            )
        ),
    ],
    ids=["openpose", "editor", "null parts", "shares", "flat list", "pairs", "half the canvas"],
)
def test_all_ways_to_write_a_pose_draw_the_same(keypoints, standing):
    assert np.array_equal(draw_pose(keypoints, 256, 256), standing)


def test_the_25_points_of_openposes_newer_body(standing):
    hips, feet = [100, 130, 0.9], [[50, 230, 0.9]] * 6
    body = [*SEEN[:8], hips, *SEEN[8:], *feet]
    assert np.array_equal(draw_pose([body], 256, 256), standing)


def test_what_is_not_seen_is_not_drawn(standing):
    for missing in ([65, 130, 0], None):
        hidden = [*SEEN[:4], missing, *SEEN[5:]]
        picture = draw_pose([hidden], 256, 256)
        assert pixel(picture, 65, 130) == pixel(picture, 67, 115) == (0, 0, 0)
        assert pixel(picture, 70, 100) == (255, 255, 0)
        assert pixel(standing, 67, 115) != (0, 0, 0)


def test_hands_and_faces():
    hand = [[20 + 4 * i, 50, 1] for i in range(21)]
    picture = draw_pose(
        {
            "people": [{"hand_right_keypoints_2d": hand, "face_keypoints_2d": [[60, 90, 1]] * 70}],
            "canvas_width": 128,
            "canvas_height": 100,
        }
    )
    assert picture.size == (128, 100)
    assert pixel(picture, 100, 50) == (0, 0, 255)
    assert pixel(picture, 60, 90) == (255, 255, 255)
    assert not np.asarray(draw_pose({"people": []}, 16, 16)).any()


def test_what_is_refused():
    for keypoints, size, message in (
        ({"person": []}, (8, 8), "a list 'people'"),
        ([FLAT], (None, None), "is drawn at some size"),
        ([FLAT], (8, 100_000), "is drawn at some size"),
        ([FLAT[:-1]], (8, 8), "numbers in threes"),
        ([SEEN[:7]], (8, 8), "has 7 points, expected 18 or 25"),
        ([[*SEEN[:17], [float("nan"), 1, 1]]], (8, 8), "nan"),
        ([["x"] * 18], (8, 8), "numbers in threes"),
        ({"people": [], "canvas_width": 0, "canvas_height": 5}, (8, 8), "canvas_width is 0"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            draw_pose(keypoints, *size)


def test_pictures_are_rgb(standing):
    assert isinstance(standing, Image.Image)
    assert standing.mode == "RGB"
