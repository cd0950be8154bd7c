"""Progress of requests that run, and images of jobs that were interrupted."""

import io
from dataclasses import replace

from PIL import Image

from limner.images.metadata import read_record
from limner.images.picture import encode
from limner.server.sdapi.delivery import unfinished
from limner.server.sdapi.running import (
    Run,
    Runs,
    Unfinished,
    furthest,
    is_stopped,
    newest_preview,
    open_jobs,
    progress_of,
)
from limner.service.encoding import Encoding
from limner.service.events import JobProgress
from limner.service.jobs import Job, JobSet
from limner.service.release import converted

PARAMS = {
    "prompt": "a boat",
    "width": 128,
    "height": 64,
    "steps": 10,
    "seed": 4,
    "sampler": "euler",
    "sigma_schedule": "uniform",
    "guidance_scale": 4.0,
}


def job(index, state, **more):
    values = {
        "id": f"job{index}",
        "set_id": "set",
        "index": index,
        "account_id": "anna",
        "key_id": None,
        "kind": "generate",
        "lane": "interactive",
        "params": PARAMS,
        "model": "checkpoint:picturebook",
        "predicted_seconds": 1.0,
        "position": float(index),
        "attempt": 1,
        "fence": 1,
        "cancel_requested": False,
        "created_at": 100.0,
        "started_at": None if state == "queued" else 100.0,
    }
    return Job(**{**values, "state": state, **more})


def set_of(*states):
    jobs = tuple(job(index, state) for index, state in enumerate(states))
    return JobSet("set", "anna", "generate", "interactive", "sdapi", {"prompt": "a boat"}, 100.0, jobs)


def step(index, number, steps=10, preview=None):
    return JobProgress("anna", "set", f"job{index}", index, number, steps, 1.0, preview=preview)


def answer(states, steps, run=None, now=110.0):
    return progress_of(set_of(*states), run or Run("txt2img", len(states), False), steps.get, now=now)


def test_what_waits_has_begun_nothing():
    told = answer(["queued"], {})
    assert (told["progress"], told["state"]["job_count"], told["eta_relative"]) == (0.01, -1, 0.0)
    assert told["textinfo"] == "Waiting..."


def test_progress_counts_jobs_and_steps():
    told = answer(["done", "running", "queued", "queued"], {"job1": step(1, 5)})
    assert told["progress"] == 0.01 + 1.5 / 4
    state = told["state"]
    assert (state["job"], state["job_count"], state["job_no"]) == ("scripts_txt2img", 4, 1)
    assert (state["sampling_step"], state["sampling_steps"]) == (5, 10)
    assert told["eta_relative"] == 10.0 / told["progress"] - 10.0
    hires = answer(["running"], {"job0": step(0, 15, 20)}, Run("img2img", 1, True))
    assert (hires["state"]["job_count"], hires["state"]["job_no"]) == (2, 1)
    assert hires["state"]["job"] == "scripts_img2img"


def test_progress_never_falls_and_stays_below_1():
    run = Run("txt2img", 1, False)
    assert answer(["running"], {"job0": step(0, 8)}, run)["progress"] == 0.81
    assert answer(["queued"], {}, run)["progress"] == 0.81  # its worker has died
    assert answer(["running"], {"job0": step(0, 10)}, run)["progress"] == 0.99


def test_a_set_of_another_process_is_known_by_its_jobs():
    found = Runs().of(set_of("running", "queued"))
    assert (found.task, found.iterations, found.hires) == ("txt2img", 2, False)


def test_the_newest_preview_is_that_of_the_job_that_is_furthest():
    steps = {"job0": step(0, 3, preview=b"a"), "job1": step(1, 7, preview=b"b"), "job2": step(2, 9)}
    found = newest_preview(set_of("running", "running", "running"), steps.get)
    assert found is not None
    assert found.preview == b"b"
    assert newest_preview(set_of("running"), {}.get) is None


def test_of_the_jobs_that_are_stopped_the_one_that_is_furthest_is_kept():
    jobs = set_of("done", "running", "running", "running", "queued").jobs
    steps = {"job0": step(0, 9), "job1": step(1, 3), "job2": step(2, 7)}
    assert furthest(jobs, steps.get) is jobs[2]
    assert furthest(jobs, {}.get) is None


def test_a_set_whose_jobs_are_being_stopped_is_over():
    stopping = job(1, "running", cancel_requested=True)
    of = lambda *jobs: replace(set_of(), jobs=jobs)  # noqa: E731
    assert open_jobs(of(job(0, "done"), stopping, job(2, "cancelled"))) == []
    assert [one.id for one in open_jobs(of(job(0, "queued"), stopping))] == ["job0"]
    assert [is_stopped(one) for one in (stopping, job(0, "done", cancel_requested=True))] == [True, False]


def test_an_interrupted_image_is_its_last_preview_at_full_size():
    small = io.BytesIO()
    Image.new("RGB", (16, 8), "red").save(small, "JPEG")
    preview = Unfinished(small.getvalue(), 6, 10, decoded=False)
    picture = unfinished(job(0, "cancelled"), preview, {"checkpoint:picturebook": "picturebook"})
    assert picture.size == (128, 64)
    assert picture.record.notes == {"interrupted": "a preview after step 6 of 10"}
    assert "Seed: 4" in picture.record.infotext()
    whole = io.BytesIO()
    Image.new("RGB", (128, 64), "blue").save(whole, "PNG")
    decoded = unfinished(job(0, "cancelled"), Unfinished(whole.getvalue(), 6, 10, decoded=True), {})
    assert decoded.record.notes == {"interrupted": "after step 6 of 10"}
    assert decoded.getpixel((0, 0)) == (0, 0, 255)
    for format in ("png", "jpeg", "webp"):
        sent = converted(encode(picture, "PNG"), Encoding(format))
        record = read_record(io.BytesIO(sent))
        assert record is not None
        assert record.notes == picture.record.notes
    assert read_record(io.BytesIO(converted(encode(picture, "PNG"), Encoding(with_record=False)))) is None
