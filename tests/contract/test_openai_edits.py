"""Edits of OpenAI's Images API, as its unchanged Python SDK and raw clients call them."""

import base64
import random
from collections import Counter
from collections.abc import Iterator

import httpx
import openai
import pytest

from limner.images.opening import open_image
from tests.openai_kit import mask, opened, photo, record_of
from tests.waiting import DEADLINE


@pytest.fixture(params=["bytes", "tuple", "wrong type", "file", "path", "list", "jpeg"])
def picture(request, tmp_path) -> Iterator[object]:
    """A picture in each form that the SDK takes."""
    path = tmp_path / "photo.png"
    path.write_bytes(photo())
    match request.param:
        case "bytes":
            yield photo()
        case "tuple":
            yield ("a.png", photo(), "image/png")
        case "wrong type":
            yield ("a.txt", photo(), "text/plain")
        case "file":
            with path.open("rb") as file:
                yield file
        case "path":
            yield path
        case "list":
            yield [photo()]
        case "jpeg":
            yield photo("JPEG")


def test_a_picture_is_edited_in_every_form_that_the_sdk_sends(sdk, picture):
    answer = sdk.images.edit(
        image=picture, prompt="a boat", size="64x64", n=2, extra_body={"seed": 3, "steps": 2, "strength": 0.5}
    )
    records = [record_of(one.b64_json) for one in answer.data]
    assert [one.request.seed for one in records] == [3, 4]
    assert {one.request.strength for one in records} == {0.5}
    assert all(one.request.image.startswith("sha256:") for one in records)
    assert (answer.size, answer.usage.input_tokens_details.image_tokens) == ("64x64", 16)


def test_what_is_transparent_in_the_mask_is_white_in_the_requests(sdk, live):
    answer = sdk.images.edit(image=photo(), mask=mask(), prompt="a boat", extra_body={"steps": 2})
    request = record_of(answer.data[0].b64_json).request
    paths = [live.state.assets.locate(one) for one in (request.mask, request.image)]
    white, given = (open_image(path) for path in paths)
    assert white.convert("L").crop((0, 0, 48, 64)).getextrema() == (255, 255)
    assert white.convert("L").crop((48, 0, 96, 64)).getextrema() == (0, 0)
    assert given.convert("RGB").tobytes() == opened(photo()).tobytes()


def test_input_fidelity_keeps_more_of_the_image(sdk):
    def strength(**values):
        answer = sdk.images.edit(image=photo(), prompt="x", extra_body={"steps": 10}, **values)
        return record_of(answer.data[0].b64_json).request.strength

    assert strength(input_fidelity="high") < strength(input_fidelity="low") == strength() < 1
    assert strength(mask=mask()) == 1
    assert strength(mask=mask(), input_fidelity="high") == strength(input_fidelity="high")


def test_the_transparency_of_the_picture_is_the_mask_of_dall_e_2(sdk):
    answer = sdk.images.edit(
        image=mask(), model="dall-e-2", prompt="x", response_format="b64_json", extra_body={"steps": 2}
    )
    assert record_of(answer.data[0].b64_json).request.mask is not None


@pytest.mark.parametrize(
    ("files", "param"),
    [
        ({"image": b"no image"}, "image"),
        ({"image": b""}, "image"),
        ({"image": photo(), "mask": mask((64, 64))}, "mask"),
        ({"image": photo(), "mask": photo()}, "mask"),
        ({"image": [photo(), photo()]}, "image"),
    ],
)
def test_pictures_that_do_not_do_are_refused(sdk, files, param):
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.edit(prompt="x", **files)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


def test_all_names_and_bodies_of_an_edit_lead_to_the_same(live):
    """Complaint 18."""
    url, given = f"{live.url}/v1/images/edits", {"prompt": "x", "seed": "3", "steps": "2"}
    data = f"data:image/png;base64,{base64.b64encode(photo()).decode()}"
    typed = {"prompt": "x", "seed": 3, "steps": 2}
    answers = [
        httpx.post(url, data=given, files={name: ("p.png", photo(), "image/png")}, timeout=DEADLINE)
        for name in ("image", "image[]", "image[0]")
    ]
    answers += [
        httpx.post(url, json={**typed, **more}, timeout=DEADLINE)
        for more in ({"image": data}, {"images": [{"image_url": data}]}, {"image": [data]})
    ]
    assert [one.status_code for one in answers] == [200] * 6
    requests = [record_of(one.json()["data"][0]["b64_json"]).request for one in answers]
    assert all(one == requests[0] for one in requests)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bytes with some changed, removed or repeated."""
    changed = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 4))):
        at = chance.randrange(len(changed))
        match chance.randrange(3):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at : at + chance.randint(1, min(40, len(changed) - 1))]
            case _:
                changed[at:at] = changed[max(0, at - 30) : at]
    return bytes(changed)


def part(name: str, value: bytes, more: str = "") -> bytes:
    """A part of a form with the boundary "y"."""
    return f'--y\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def test_damaged_forms_and_files_are_never_a_fault_of_the_server(live):
    chance, statuses = random.Random(5), Counter()
    formats = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
    with httpx.Client(timeout=DEADLINE) as http:
        for number in range(48):
            files = {"image": photo(formats[number % 6]), "mask": mask()}
            if number % 2:
                files = {name: damaged(data, chance) for name, data in files.items()}
            texts = {"prompt": b"x", "steps": b"2", "size": b"64x64"}
            body = b"".join(part(name, value) for name, value in texts.items())
            body += (
                b"".join(part(name, value, '; filename="a"') for name, value in files.items()) + b"--y--\r\n"
            )
            answer = http.post(
                f"{live.url}/v1/images/edits",
                content=body if number % 2 else damaged(body, chance),
                headers={"content-type": "multipart/form-data; boundary=y"},
            )
            statuses[answer.status_code] += 1
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
    assert statuses.keys() == {200, 400}
