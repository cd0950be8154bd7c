"""OpenAI's Images API, as its unchanged Python SDK calls it: generations, addresses, streams and models."""

import json
import time

import httpx
import openai
import pytest

from tests.openai_kit import opened, photo, record_of
from tests.waiting import DEADLINE


def test_images_with_their_seeds_and_usage(sdk):
    answer = sdk.images.generate(
        prompt="a red boat", n=3, size="128x96", user="someone", extra_body={"seed": 40, "steps": 2}
    )
    assert answer.created == pytest.approx(time.time(), abs=60)
    assert [one.model_extra["seed"] for one in answer.data] == [40, 41, 42]
    images = [opened(one.b64_json) for one in answer.data]
    assert [(image.format, image.size) for image in images] == [("PNG", (128, 96))] * 3
    assert [record_of(one.b64_json).request.seed for one in answer.data] == [40, 41, 42]
    assert (answer.size, answer.output_format, answer.background) == ("128x96", "png", "opaque")
    assert (answer.quality, answer.safety_identifier) == ("medium", "someone")
    usage = answer.usage
    assert usage.input_tokens == usage.input_tokens_details.text_tokens == 3
    assert usage.output_tokens == 3 * 8 * 6
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_the_same_request_gives_the_same_image_alone_and_in_a_set(sdk):
    alone = sdk.images.generate(prompt="a boat", size="64x64", extra_body={"seed": 41, "steps": 1})
    both = sdk.images.generate(prompt="a boat", size="64x64", n=2, extra_body={"seed": 40, "steps": 1})
    assert opened(alone.data[0].b64_json).tobytes() == opened(both.data[1].b64_json).tobytes()


@pytest.mark.parametrize(("format", "name"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_formats_keep_the_record(sdk, format, name):
    answer = sdk.images.generate(
        prompt="a boat", size="64x64", output_format=format, extra_body={"seed": 5, "steps": 1}
    )
    image = opened(answer.data[0].b64_json)
    assert (image.format, answer.output_format) == (name, format)
    assert record_of(answer.data[0].b64_json).request.seed == 5


def test_compression_is_the_quality_of_a_jpeg(sdk):
    def coarseness(compression):
        answer = sdk.images.generate(
            prompt="a boat",
            size="64x64",
            output_format="jpeg",
            output_compression=compression,
            extra_body={"steps": 1},
        )
        return sum(opened(answer.data[0].b64_json).quantization[0])

    assert coarseness(100) == 64 < coarseness(50) < coarseness(0)


def test_quality_changes_the_number_of_steps(sdk):
    def steps(**values):
        answer = sdk.images.generate(prompt="a boat", size="64x64", **values)
        return record_of(answer.data[0].b64_json).request.steps

    own = steps()
    assert steps(quality="low") == -(-own // 2)
    assert steps(quality="hd") == -(-own * 3 // 2)
    assert steps(quality="hd", extra_body={"steps": 3}) == 3


def test_a_warning_reaches_the_caller(sdk):
    answer = sdk.images.edit(image=photo(), prompt="x", size="64x64", extra_body={"steps": 2})
    assert "cropped" in answer.model_extra["warnings"][0]


def test_an_address_is_absolute_and_needs_no_key(sdk, live):
    answer = sdk.images.generate(
        prompt="a boat", model="dall-e-3", size="64x64", output_format="webp", extra_body={"steps": 1}
    )
    [one] = answer.data
    assert one.b64_json is None
    assert one.url.startswith(f"{live.url}/v1/")
    got = httpx.get(one.url, timeout=DEADLINE)
    assert (got.status_code, got.headers["content-type"]) == (200, "image/webp")
    assert opened(got.content).size == (64, 64)
    again = httpx.get(one.url, headers={"if-none-match": got.headers["etag"]}, timeout=DEADLINE)
    assert again.status_code == 304
    assert httpx.get(one.url, headers={"range": "bytes=0-3"}, timeout=DEADLINE).content == got.content[:4]
    assert httpx.head(one.url, timeout=DEADLINE).headers["content-length"] == str(len(got.content))


def test_another_address_leads_nowhere(sdk):
    [one] = sdk.images.generate(
        prompt="a boat", response_format="url", size="64x64", extra_body={"steps": 1}
    ).data
    expires = one.url.partition("expires=")[2].partition("&")[0]
    for other in (
        one.url.replace("compression=100", "compression=99"),
        one.url.replace(expires, str(int(expires) + 1)),
        one.url.replace(".png", ".jpeg"),
        one.url[:-1] + ("0" if one.url[-1] != "0" else "1"),
        one.url.replace("/files/", "/files/..%2f"),
    ):
        answer = httpx.get(other, timeout=DEADLINE)
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(one.url.partition("?")[0], timeout=DEADLINE).status_code == 400


def test_a_stream_has_previews_and_ends_with_the_image(sdk):
    """Complaint 21."""
    events = list(
        sdk.images.generate(
            prompt="a boat",
            size="128x64",
            stream=True,
            partial_images=2,
            output_format="webp",
            extra_body={"seed": 1, "steps": 20},
        )
    )
    *partials, last = events
    assert last.type == "image_generation.completed"
    assert 1 <= len(partials) <= 2
    assert [one.partial_image_index for one in partials] == list(range(len(partials)))
    for one in events:
        image = opened(one.b64_json)
        assert (image.format, image.size) == ("WEBP", (128, 64))
        assert (one.output_format, one.size, one.background) == ("webp", "128x64", "opaque")
        assert one.created_at == pytest.approx(time.time(), abs=60)
    assert last.usage.total_tokens == last.usage.input_tokens + last.usage.output_tokens > 0
    assert record_of(last.b64_json).request.seed == 1


def test_a_stream_of_several_images_completes_each(sdk):
    stream = sdk.images.generate(
        prompt="a boat", n=3, size="64x64", stream=True, extra_body={"seed": 7, "steps": 2}
    )
    completed = list(stream)
    assert {one.type for one in completed} == {"image_generation.completed"}
    assert sorted(one.model_extra["seed"] for one in completed) == [7, 8, 9]
    assert sorted(one.model_extra["image_index"] for one in completed) == [0, 1, 2]


def test_a_stream_without_previews_from_the_worker_still_has_one(sdk, live, monkeypatch):
    monkeypatch.setattr(live.painter, "previews", False)
    events = list(
        sdk.images.generate(prompt="x", size="64x64", stream=True, partial_images=3, extra_body={"steps": 1})
    )
    assert [one.type.rpartition(".")[2] for one in events] == ["partial_image", "completed"]


def test_an_edit_is_streamed_under_its_own_name(sdk):
    events = list(
        sdk.images.edit(image=photo(), prompt="x", stream=True, partial_images=1, extra_body={"steps": 4})
    )
    assert [one.type for one in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert events[-1].usage.input_tokens_details.image_tokens == 6 * 4


def test_a_failure_within_a_stream_is_raised(sdk):
    stream = sdk.images.generate(prompt="a fault", stream=True, partial_images=1)
    with pytest.raises(openai.APIError, match="NaN") as caught:
        list(stream)
    assert caught.value.body["code"] == "numerical_error"


def test_what_is_wrong_is_said_before_a_stream_begins(sdk):
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.generate(prompt="x", stream=True, size="100x100")
    assert caught.value.param == "size"


def test_an_event_stream_on_the_wire(live):
    body = {"prompt": "x", "size": "64x64", "stream": True, "steps": 2}
    with httpx.stream("POST", f"{live.url}/v1/images/generations", json=body, timeout=DEADLINE) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        [block, end] = answer.read().decode().split("\n\n")
    name, data = block.split("\n")
    assert (name, end) == ("event: image_generation.completed", "")
    assert json.loads(data.removeprefix("data: "))["type"] == "image_generation.completed"


def test_models_are_listed_and_found_by_every_name(sdk):
    listed = {one.id: one for one in sdk.models.list()}
    assert listed["picturebook"].owned_by == "limner"
    assert "house/style" in listed
    for name in ("picturebook", "house/style", "gpt-image-1", "dall-e-2"):
        found = sdk.models.retrieve(name)
        assert (found.id, found.object) == (name, "model")


@pytest.mark.parametrize(
    "model", [None, "picturebook", "house/style", "dall-e-3", "gpt-image-9", "chatgpt-image-latest"]
)
def test_a_model_may_be_left_out_or_be_one_of_openais(sdk, model):
    """Complaint 20."""
    answer = sdk.images.generate(
        prompt="x", model=model, size="64x64", response_format="b64_json", extra_body={"steps": 1}
    )
    assert record_of(answer.data[0].b64_json).request.model.endswith("picturebook")


@pytest.mark.parametrize("name", ["stable-diffusion-9", "../picturebook", "/etc/passwd", "picture book"])
def test_other_models_are_not_found(sdk, name):
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.images.generate(prompt="x", model=name)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "this service has picturebook" in caught.value.message
    assert "GET /v1/models lists them" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve(name)
