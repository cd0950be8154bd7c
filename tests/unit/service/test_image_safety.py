"""Which policies look at images, and which images in a file they see."""

import io

import pytest
from PIL import Image

from limner.errors import InvalidRequest
from limner.service.image_safety import CHECK, DECISIONS, LEVELS, ImageRules, ImageSafety
from limner.settings.serve import ServeSettings


class Red:
    """A checker that scores how red an image is."""

    name, version = "opennsfw", "stub"

    def check(self, images):
        return [{"nsfw": float(image[..., 0].mean() - image[..., 2].mean()) / 255} for image in images]


def encoded(*frames: Image.Image, format: str = "PNG") -> bytes:
    data = io.BytesIO()
    more = {"save_all": True, "append_images": frames[1:]} if len(frames) > 1 else {}
    frames[0].save(data, format, **more)
    return data.getvalue()


@pytest.fixture
def action_of(tmp_path):
    """What `strict` does with a file."""
    settings = ServeSettings(data=tmp_path, safety="strict")
    safety = ImageSafety(settings, load=lambda policy: {"opennsfw": Red()})

    def action(file: bytes) -> str:
        answer, parts = safety.answer({LEVELS: (None, None)}, [file])
        assert parts == []
        [decision] = answer[DECISIONS]
        return decision["action"]

    return action


RED, BLUE = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))


def test_every_image_in_a_file_is_seen(action_of):
    assert CHECK == "check_images"
    assert action_of(encoded(BLUE)) == "allow"
    assert action_of(encoded(RED)) == "block"
    for format in ("GIF", "WEBP", "PNG"):
        assert action_of(encoded(BLUE, RED, format=format)) == "block"
        assert action_of(encoded(BLUE, Image.new("RGB", (32, 32), "navy"), format=format)) == "allow"


def test_what_transparency_hides_is_seen(action_of):
    hidden = RED.convert("RGBA")
    hidden.putalpha(0)
    assert action_of(encoded(hidden)) == "block"
    half = Image.new("RGBA", (32, 32), (255, 0, 0, 128))
    assert action_of(encoded(half)) == "block"
    assert action_of(encoded(BLUE.convert("RGBA"))) == "allow"


def test_what_is_no_image_or_holds_too_many_is_refused(action_of):
    for file in (b"", b"no image", encoded(RED)[:60]):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            action_of(file)
    shades = [Image.new("L", (2, 2), number) for number in range(101)]
    with pytest.raises(InvalidRequest, match="holds 101 images; expected at most 100"):
        action_of(encoded(*shades, format="TIFF"))


def test_the_services_own_policy_looks_at_images_once_it_is_chosen_and_levels_always(tmp_path):
    def named(rules: ImageRules, *levels: str | None) -> list[str]:
        return [policy.version.partition(" ")[0] for policy in rules.of(*levels)]

    unchosen, chosen, off = (
        ImageRules(ServeSettings(data=tmp_path, safety=safety)) for safety in (None, "standard", "off")
    )
    assert named(unchosen, None, None) == named(off, None, None) == []
    assert named(chosen, None, None) == ["standard"]
    assert named(unchosen, "strict", None) == named(unchosen, None, "strict") == ["strict"]
    assert named(chosen, "off", "strict") == ["strict"]
