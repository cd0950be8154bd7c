"""Bodies with images, and the images of an edit, without a server."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limner.catalogue.catalogue import Entry
from limner.catalogue.contents import Kind
from limner.errors import InvalidRequest
from limner.files import FileStamp
from limner.server.openai.bodies import Body, File, decode_base64, read_form, read_object
from limner.server.openai.errors import InvalidParameter, api_error
from limner.server.openai.models import find_image_prompter
from limner.server.openai.pictures import edit_images
from limner.server.openai.translate import read_call
from limner.server.state import ServerState

DOT = base64.b64encode(b"any bytes").decode()


def fault(**values) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_call("edit", Body({"prompt": "a red boat", "image": DOT, **values}))
    return caught.value


def form(*pairs) -> Body:
    return read_form([("prompt", "a red boat"), *pairs])


@pytest.mark.parametrize("value", [[], None, "text", 5, [{"prompt": "x"}]])
def test_a_body_that_is_no_object_is_refused(value):
    with pytest.raises(InvalidParameter) as caught:
        read_object(value)
    assert api_error(caught.value).body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "name",
    ["image", "image[]", "image[0]", "image[][image_url]", "images[0][image_url]", "image[image_url]"],
)
def test_an_image_is_found_under_each_of_its_names(name):
    url = "data:image/png;base64," + base64.b64encode(b"first").decode()
    body = form((name, url if "url" in name else File(b"first")))
    assert read_call("edit", body).images == (b"first",)


@pytest.mark.parametrize(
    "names", [["image", "image"], ["image[]", "image[]"], ["image[1]", "image[0]"], ["image", "image[]"]]
)
def test_several_images_keep_their_order(names):
    pairs = list(zip(names, (File(b"first"), File(b"second")), strict=True))
    if names[0] == "image[1]":
        pairs = [("image[1]", File(b"second")), ("image[0]", File(b"first"))]
    assert read_call("edit", form(*pairs)).images == (b"first", b"second")


def test_json_edits_take_data_urls_in_every_form():
    url = f"data:image/png;base64,{DOT}"
    for values in (
        {"image": url},
        {"image": [url]},
        {"images": [{"image_url": url}]},
        {"images": [{"image_url": {"url": url}}]},
        {"images": [url]},
        {"image": DOT.rstrip("=")},
    ):
        call = read_call("edit", Body({"prompt": "x", "mask": {"image_url": url}, **values}))
        assert (call.images, call.mask) == ((b"any bytes",), b"any bytes")


@pytest.mark.parametrize(
    ("values", "param", "words"),
    [
        ({"image": "https://example.org/a.png"}, "image", "not fetched"),
        ({"images": [{"file_id": "file-1"}], "image": None}, "image", "file_id"),
        ({"image": "../picture.png"}, "image", "cannot be decoded"),
        ({"image": ""}, "image", "cannot be decoded"),
        ({"image": 5}, "image", "expected a file"),
        ({"image": []}, "image", "empty list"),
        ({"image": [DOT] * 17}, "image", "16 at most"),
        ({"image": None}, "image", "missing"),
        ({"mask": {"image_url": 5}}, "mask", "expected a file"),
        ({"input_fidelity": "medium"}, "input_fidelity", "expected one of"),
        ({"style": "vivid"}, "style", "unknown parameter"),
    ],
)
def test_faults_of_an_edit_are_named(values, param, words):
    told = api_error(fault(**values))
    assert told.param == param
    assert words in told.message


def test_the_digest_of_a_form_is_of_its_values():
    one, same, other = (form(("image", File(data)), ("n", "2")) for data in (b"a", b"a", b"b"))
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize("name", ["[0]", "a[", "a[b", "a]", "", "a" + "[b]" * 9, "loras[1000000]"])
def test_unreadable_names_of_a_form_are_refused(name):
    with pytest.raises(InvalidParameter):
        read_form([(name, "x")])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.text("ab[]01", max_size=8), st.just("x")), max_size=6))
def test_no_form_does_more_than_be_refused(pairs):
    try:
        body = read_form(pairs)
    except InvalidParameter:
        return
    assert json.dumps(body.values)


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=40))
def test_base64_is_read_in_each_of_its_forms(data):
    """Complaint 7: prefix, white space, the URL-safe alphabet and missing padding."""
    plain = base64.b64encode(data).decode()
    for text in (
        plain,
        plain.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        f"data:image/x;base64,{plain}",
    ):
        assert decode_base64(text, "image") == data
    assert decode_base64("\n".join(plain), "image") == data


def encoded(image: Image.Image, kind: str = "PNG", **params) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **params)
    return out.getvalue()


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


PHOTO = encoded(Image.effect_noise((96, 64), 80).convert("RGB"), "JPEG")


def masked(size=(96, 64), box=(0, 0, 48, 64)) -> bytes:
    image = Image.new("RGBA", size, (10, 20, 30, 255))
    image.paste((0, 0, 0, 0), box)
    return encoded(image)


def test_an_image_of_the_right_size_keeps_its_bytes():
    made = edit_images(PHOTO, size=(96, 64))
    assert base64.b64decode(made.image.partition(",")[2]) == PHOTO
    assert (made.mask, made.size, made.warnings) == (None, (96, 64), ())


def test_transparent_becomes_white():
    made = edit_images(PHOTO, masked())
    mask = decoded(made.mask)
    assert (mask.size, mask.mode) == ((96, 64), "L")
    assert (mask.getpixel((10, 10)), mask.getpixel((90, 10))) == (255, 0)


def test_an_image_of_other_proportions_is_cropped_with_its_mask_and_says_so():
    made = edit_images(PHOTO, masked(), size=(64, 64))
    assert decoded(made.image).size == decoded(made.mask).size == (64, 64)
    assert "left and right are cropped" in made.warnings[0]
    assert decoded(made.mask).getbbox()[2] == pytest.approx(32, abs=1)  # the middle of the image stays there
    assert edit_images(PHOTO, size=(192, 128)).warnings == ()


def test_a_mask_that_would_be_cropped_away_is_refused():
    with pytest.raises(InvalidParameter, match="cropped away"):
        edit_images(PHOTO, masked(box=(0, 0, 8, 64)), size=(64, 64))


def test_photos_are_turned_upright_before_their_mask_is_compared():
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encoded(Image.new("RGB", (96, 64), "red"), "JPEG", exif=exif)
    assert edit_images(photo, masked((64, 96), (0, 0, 64, 10))).size == (64, 96)


def test_the_transparency_of_the_image_is_its_mask_where_that_is_asked():
    assert edit_images(masked()).mask is None
    assert decoded(edit_images(masked(), mask_is_in_image=True).mask).getpixel((10, 10)) == 255
    assert edit_images(PHOTO, mask_is_in_image=True).mask is None


@pytest.mark.parametrize(
    ("image", "mask", "param", "words"),
    [
        (b"no image", None, "image", "not an image"),
        (PHOTO[: len(PHOTO) // 2], None, "image", "broken"),
        (PHOTO, b"no image", "mask", "not an image"),
        (PHOTO, masked((64, 64)), "mask", "same size"),
        (PHOTO, PHOTO, "mask", "no transparent part"),
        (PHOTO, masked(box=(0, 0, 0, 0)), "mask", "no transparent part"),
    ],
)
def test_files_that_do_not_do_are_refused_by_name(image, mask, param, words):
    with pytest.raises(InvalidParameter) as caught:
        edit_images(image, mask)
    told = api_error(caught.value)
    assert (told.param, told.kind.status) == (param, 400)
    assert words in told.message


def test_a_bomb_is_refused_by_its_header():
    with pytest.raises(InvalidParameter, match="64x64"):
        edit_images(encoded(Image.new("1", (64, 64))), max_pixels=4000)


# --- further images -----------------------------------------------------------------------------------------


def state_with(*adapters: Entry) -> ServerState:
    """A server's state that has these IP-Adapters."""

    def entries(kind, family=None):
        return tuple(one for one in adapters if one.kind == kind and one.family in (family, ""))

    return SimpleNamespace(catalogue=SimpleNamespace(entries=entries))


def entry(kind: Kind, name: str, family: str, problem: str | None = None) -> Entry:
    path = Path(name)
    return Entry(
        f"{kind}:{name}", kind, name, family, path, FileStamp(path, 0, 0, 0), "folder", 0, problem=problem
    )


def test_further_images_are_prompts_of_an_adapter_for_the_model():
    checkpoint = entry("checkpoint", "sd15", "sd1")
    adapters = [
        entry("ip_adapter", "broken", "sd1", problem="a pickle"),
        entry("ip_adapter", "other", "xl"),
        entry("ip_adapter", "plain", "sd1"),
    ]
    assert find_image_prompter(state_with(*adapters), checkpoint).name == "plain"
    call = read_call("edit", Body({"prompt": "x", "image": [DOT, DOT]}))
    prompt = {"model": "plain", "images": ["data:image/png;base64,AAAA"]}
    request = call.request("sd15", default_steps=20, image="sha256:" + "0" * 64, image_prompt=prompt)
    assert [one.model for one in request.image_prompts] == ["plain"]
    with pytest.raises(InvalidParameter, match="no IP-Adapter for sd15") as caught:
        find_image_prompter(state_with(*adapters[:2]), checkpoint)
    assert caught.value.fields == ("image",)
