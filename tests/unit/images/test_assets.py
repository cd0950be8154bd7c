"""References to images are opened by their content, and paths only where they are allowed."""

import hashlib

import pytest
from PIL import Image

from limner.errors import InvalidRequest
from limner.images.assets import Assets
from limner.images.inputs import inputs_of, map_inputs
from limner.images.opening import image_source, open_image
from limner.request import GenerationRequest


@pytest.fixture
def noise():
    return Image.effect_noise((16, 16), 90).convert("RGB")


def test_content_is_stored_and_found_by_its_hash(tmp_path):
    assets = Assets(tmp_path / "store")
    reference = assets.put(b"content")
    assert reference == f"sha256:{hashlib.sha256(b'content').hexdigest()}"
    assert assets.put(b"content") == reference
    with assets.open(reference) as file:
        assert file.read() == b"content"
    blob = assets.put_blob(b"other")
    assert blob != assets.put_blob(b"other")
    with assets.open(blob) as file:
        assert file.read() == b"other"


def test_a_file_is_found_in_a_folder_by_its_bytes_or_its_pixels(tmp_path, noise):
    (tmp_path / "inner").mkdir()
    noise.save(tmp_path / "inner" / "a.png", compress_level=9)
    assets = Assets(folders=(tmp_path,))
    of_bytes = hashlib.sha256((tmp_path / "inner" / "a.png").read_bytes()).hexdigest()
    in_memory = assets.reference(image_source(noise))  # what a record holds for a PIL image
    assert in_memory != f"sha256:{of_bytes}"
    for reference in (f"sha256:{of_bytes}", in_memory):
        path = assets.locate(reference)
        assert path == str(tmp_path / "inner" / "a.png")
        assert open_image(path).tobytes() == noise.tobytes()
    noise.putpixel((0, 0), (1, 2, 3))
    noise.save(tmp_path / "inner" / "a.png")
    with pytest.raises(InvalidRequest, match="no file with this content is known"):
        assets.locate(in_memory)


@pytest.mark.parametrize(
    "reference",
    [
        f"sha256:{'0' * 64}",
        "sha256:12",
        "blob:unknown",
        "blob:../../etc/passwd",
        f"sha256:../{'0' * 61}",
        "blob:",
    ],
)
def test_what_is_not_known_is_an_error_that_names_the_field(tmp_path, reference):
    for assets in (Assets(), Assets(tmp_path, (tmp_path,))):
        with pytest.raises(InvalidRequest) as caught:
            assets.locate(reference, "mask")
        assert caught.value.fields == ("mask",)


def test_paths_are_opened_only_where_they_are_allowed(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to("/etc/passwd")
    bounded = Assets(roots=(inside,))
    assert bounded.locate(str(inside / "a.png")) == str(inside / "a.png")
    for path in ("/etc/passwd", str(inside / ".." / "a.png"), str(inside / "link.png"), "~/a.png"):
        with pytest.raises(InvalidRequest, match="outside of the folders"):
            bounded.locate(path)
        with pytest.raises(InvalidRequest, match="paths are not opened here"):
            Assets(allow_paths=False).locate(path)
        assert Assets().locate(path) == path
    assert Assets(allow_paths=False).locate("data:image/png;base64,AA") == "data:image/png;base64,AA"


def test_records_hold_paths_as_they_are_and_all_else_by_its_hash(tmp_path, noise):
    assets = Assets(tmp_path / "store")
    reference = assets.put(b"content")
    assert assets.reference(assets.locate(reference)) == reference
    blob = assets.put_blob(b"content")
    assert assets.reference(assets.locate(blob)) == reference
    assert assets.reference("some/photo.png") == "some/photo.png"
    assert assets.reference(image_source(noise)).startswith("sha256:")


def test_the_references_of_a_request_are_listed_and_replaced():
    request = GenerationRequest.of(
        {
            "prompt": "a cat",
            "image": "a.png",
            "mask": "b.png",
            "controls": [{"model": "m", "image": "c.png"}],
            "image_prompts": [{"model": "m", "images": ["d.png", "e.png"]}],
        }
    )
    names = ["image", "mask", "controls", "image_prompts", "image_prompts"]
    assert list(inputs_of(request)) == list(
        zip(names, ["a.png", "b.png", "c.png", "d.png", "e.png"], strict=True)
    )
    changed = map_inputs(request, lambda name, source: f"{name}/{source}")
    assert [source for _, source in inputs_of(changed)] == [
        f"{name}/{source}" for name, source in inputs_of(request)
    ]
    assert map_inputs(request, lambda _, source: source) is request
