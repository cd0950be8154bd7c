"""The native API: sets with a dial, one field at several values."""

import base64

import pytest

from tests.serving import png, serving
from tests.waiting import DEADLINE

BOAT = {"prompt": "a red boat", "steps": 2}


def dialled(served, field="guidance_scale", values=(3, 7.5, 12), *, headers=None, **request):
    """What submitting a request with a dial is answered; its jobs have ended."""
    body = {"request": {**BOAT, **request}, "dial": {"field": field, "values": values}}
    headers = {"prefer": f"wait={DEADLINE}", **(headers or {})}
    return served.client.post("/api/v1/jobs", json=body, headers=headers)


def params_of(served, made):
    found = served.client.get(f"/api/v1/sets/{made['id']}").json()
    return [job["params"] for job in found["jobs"]]


def test_each_value_makes_an_image_of_one_seed(served):
    answer = dialled(served)
    made = answer.json()
    assert answer.status_code == 200, answer.text
    assert [job["state"] for job in made["jobs"]] == ["done"] * 3
    assert made["dial"] == {"field": "guidance_scale", "values": [3, 7.5, 12]}
    assert made["request"].get("guidance_scale") is None
    first, *others = params_of(served, made)
    assert [one["guidance_scale"] for one in (first, *others)] == [3, 7.5, 12]
    assert all({**one, "guidance_scale": 3} == first for one in others)
    listed = served.client.get("/api/v1/sets", params={"limit": 1}).json()["items"][0]
    assert listed["dial"] == made["dial"]
    image = served.client.get(f"/api/v1/images/{made['jobs'][1]['image']['id']}").json()
    assert image["dialled"] == {"field": "guidance_scale", "value": 7.5}


def test_choices_sizes_and_variations_can_be_dialled_and_an_image_comes_along_once(served):
    made = dialled(served, "sampler", ["Euler a", "heun"], seed=5).json()
    assert [(one["sampler"], one["seed"]) for one in params_of(served, made)] == [
        ("euler_a", 5),
        ("heun", 5),
    ]
    made = dialled(served, "variation_strength", [0, 0.1, 0.2]).json()
    plain, *others = params_of(served, made)
    assert plain.get("variation_seed") is None
    assert len({one["variation_seed"] for one in others}) == 1
    image = f"data:image/png;base64,{base64.b64encode(png(colour='teal')).decode()}"
    made = dialled(served, "strength", [0.5, 0.9], image=image).json()
    assert made["request"]["image"].startswith("sha256:")
    assert {one["image"] for one in params_of(served, made)} == {made["request"]["image"]}


@pytest.mark.parametrize(
    ("dial", "request_", "message", "fields"),
    [
        ({"field": "seed", "values": [1, 2]}, {}, "dial.field is 'seed'; expected", ["dial"]),
        ({"field": "num_images", "values": [1, 2]}, {}, "dial.field is 'num_images'", ["dial"]),
        ({"field": "prompt", "values": ["a", "b"]}, {}, "dial.field is 'prompt'", ["dial"]),
        ({"field": "loras", "values": ["a", "b"]}, {}, "dial.field is 'loras'", ["dial"]),
        ({"field": "steps", "values": [2]}, {}, "at least 2", ["dial"]),
        ({"field": "steps", "values": list(range(1, 18))}, {}, "at most 16", ["dial"]),
        ({"field": "steps", "values": [2, 3, 2]}, {}, "3 values, but only 2 different", ["dial"]),
        ({"field": "steps", "values": [2, 2.5]}, {}, "at steps 2.5, steps is 2.5", ["dial", "steps"]),
        ({"field": "steps", "values": [2, True]}, {}, "dial.values", ["dial"]),
        ({"field": "steps", "values": [2, 251]}, {}, "steps is 251; the limit is 250", ["steps"]),
        ({"field": "sampler", "values": ["euler", "eula"]}, {}, "at sampler eula, ", ["dial"]),
        ({"field": "steps", "values": [2, 3]}, {"num_images": 4}, "num_images is 4", ["num_images", "dial"]),
    ],
)
def test_what_has_no_dial_is_refused_by_name(served, dial, request_, message, fields):
    for path in ("jobs", "estimates"):
        body = {"request": {"prompt": "x", **request_}, "dial": dial}
        answer = served.client.post(f"/api/v1/{path}", json=body)
        assert answer.status_code == 422, answer.text
        problem = answer.json()
        assert message in problem["detail"]
        assert problem["fields"] == fields
        if "expected a field" in problem["detail"]:
            assert "guidance_scale" in problem["hint"]


def test_an_estimate_is_of_all_values(tmp_path):
    with serving(tmp_path, working=False, prices={"cpu": 2.0}) as served:
        seconds = {}
        for name, more in (
            ("two", {"request": {**BOAT}}),
            ("six", {"request": {**BOAT, "steps": 6}}),
            ("all", {"request": BOAT, "dial": {"field": "steps", "values": [2, 6]}}),
        ):
            found = served.client.post("/api/v1/estimates", json=more).json()
            seconds[name] = found["seconds"]
        assert (found["images"], found["request"]["steps"]) == (2, 2)
        assert seconds["all"] == pytest.approx(seconds["two"] + seconds["six"])
        assert found["cost"] == pytest.approx(2.0 * found["seconds"])


def test_limits_count_all_values(tmp_path):
    with serving(tmp_path, working=False, limits={"max_images": 2}) as served:
        refused = dialled(served)
        assert "dial.values has 3 values, each for an image; the limit is 2" in refused.json()["detail"]
    with serving(tmp_path / "work", working=False, limits={"max_work": 2 * 256 * 256 * 2}) as served:
        refused = dialled(served, width=256, height=256).json()
        assert "the limit, max_work, is" in refused["detail"]
        assert "a dial of 2 values at most" in refused["hint"]


def test_the_safety_policy_reads_a_request_with_a_dial(served):
    assert dialled(served, prompt="a hentai poster").json()["code"] == "prompt_refused"


def test_an_idempotency_key_covers_the_dial(served):
    headers = {"idempotency-key": "dial"}
    made = dialled(served, headers=headers).json()
    again = dialled(served, headers=headers)
    assert (again.json()["id"], again.json()["dial"]) == (made["id"], made["dial"])
    other = dialled(served, values=(3, 7.5), headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_a_set_with_a_dial_cannot_be_extended(served):
    made = dialled(served).json()
    for body in ({"count": 1}, {"seeds": [1]}, {"instead_of": [made["jobs"][0]["id"]]}):
        refused = served.client.post(f"/api/v1/sets/{made['id']}/jobs", json=body)
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert "each value of guidance_scale" in refused.json()["detail"]
