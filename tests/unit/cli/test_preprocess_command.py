"""`limner preprocess`."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from limner.cli.main import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["preprocess", *map(str, arguments)])
    return end.value.code, *capsys.readouterr()


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_edges_of_a_photo(capsys, photo, tmp_path):
    edges = tmp_path / "edges.png"
    code, out, err = run(capsys, "canny", photo, edges, "--low", 50, "--high", 300)
    assert (code, out.strip(), err) == (0, str(edges), "")
    with Image.open(edges) as image:
        assert np.array_equal(image, cv2.Canny(np.asarray(Image.open(photo)), 50, 300))


def test_a_pose_from_key_points(capsys, tmp_path):
    keypoints = tmp_path / "keypoints.json"
    keypoints.write_text(json.dumps({"people": [{"pose_keypoints_2d": [[0.5, 0.5, 1]] * 18}]}))
    code, out, _ = run(capsys, "pose", keypoints, tmp_path / "pose.png", "--size", "512x768")
    assert (code, out.strip()) == (0, str(tmp_path / "pose.png"))
    with Image.open(tmp_path / "pose.png") as image:
        assert image.size == (512, 768)


def test_what_is_refused(capsys, photo, tmp_path):
    empty, word = tmp_path / "empty.json", tmp_path / "word.json"
    empty.write_text(""), word.write_text('"pose"')
    out = tmp_path / "out.png"
    for arguments, message in (
        (("canny", tmp_path / "gone.png", out), "there is no image"),
        (("canny", photo, out, "--sigma", 3), "canny has no option sigma"),
        (("canny", photo, out, "--size", "8x8"), "canny has no option size"),
        (("canny", photo, tmp_path / "gone/out.png"), "cannot be written"),
        (("canny", photo, tmp_path / "out.xyz"), "cannot be written"),
        (("openpose", photo, out), "limner preprocess pose"),
        (("pose", empty, out), "is not JSON"),
        (("pose", word, out), "holds no key points"),
        (("pose", photo, out), "is not JSON"),
        (("pose", word, out, "--low", 3), "--low is not an option of pose"),
        (("pose", tmp_path / "gone.json", out), "No such file"),
    ):
        code, said, err = run(capsys, *arguments)
        assert (code, said) == (2, ""), arguments
        assert message in " ".join(err.split()), (arguments, err)
        assert not out.exists()
