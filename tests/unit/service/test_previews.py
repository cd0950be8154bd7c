"""Progress and previews for those who look."""

import io
import time

import pytest
import torch
from PIL import Image

from limner.engine.handle import Progress
from limner.generation.preview import LatentPreview
from limner.service.jobs import Claim, Job
from limner.service.previews import TYPE, Previews, encoded_preview
from limner.service.runs import Run
from limner.settings.serve import ServeSettings
from tests.waiting import until

RED = LatentPreview(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), (0.0, 0.0, -1.0))


def progress(step=1, height=4, width=8, preview_map=RED):
    latents = torch.zeros(1, 2, height, width)
    latents[:, 0] = 1.0
    return Progress(1, 1, step, 4, latents, float("inf"), preview_map=preview_map)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((4, 8), 256, (64, 32)), ((64, 64), 256, (256, 256)), ((128, 64), 256, (128, 256))],
)
def test_a_preview_is_small_and_has_the_images_proportions(size, side, expected):
    data = encoded_preview(progress(height=size[0], width=size[1]), side)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        assert image.size == expected
        red, green, blue = image.convert("RGB").getpixel((5, 5))
    assert red > 250
    assert 110 < green < 145
    assert blue < 10
    assert len(data) < 64 << 10


def test_a_model_without_a_map_has_none():
    assert encoded_preview(progress(preview_map=None), 256) is None


class Link:
    """Keeps what is sent."""

    connected = True

    def __init__(self):
        self.sent = []

    def send(self, kind, data, parts=()):
        assert kind == "progress"
        self.sent.append((time.monotonic(), data["jobs"], parts))


def run(account="anna", set_id="set1", job_id="job1"):
    job = Job(
        id=job_id,
        set_id=set_id,
        index=0,
        account_id=account,
        key_id=None,
        kind="generate",
        lane="interactive",
        state="running",
        params={},
        model="m",
        predicted_seconds=1.0,
        position=0.0,
        attempt=1,
        fence=1,
        cancel_requested=False,
        created_at=0.0,
    )
    return Run(Claim(job))


@pytest.fixture
def previews():
    made = []

    def make(runs, **settings):
        link = Link()
        made.append(Previews(ServeSettings(previews_per_second=20.0, **settings), link, lambda: runs))
        return made[-1], link

    yield make
    for one in made:
        one.close()


def test_steps_are_told_at_most_so_often_and_only_the_newest(previews):
    one = run()
    told, link = previews([one])
    for step in range(1, 41):
        one.progress = progress(step)
        told.news()
        time.sleep(0.005)
    until(lambda: link.sent and link.sent[-1][1][0]["step"] == 40)
    first, last = link.sent[0][0], link.sent[-1][0]
    # The first may go out late in its interval, and the next one on time.
    assert len(link.sent) <= (last - first) / told._interval + 2
    steps = [jobs[0]["step"] for _, jobs, _ in link.sent]
    assert steps == sorted(set(steps))
    assert link.sent[0][1][0]["seconds_left"] is None  # it is not known yet
    told.news()
    time.sleep(0.1)
    assert len(link.sent) == len(steps)  # nothing is new


@pytest.mark.parametrize(
    ("watch", "seen"),
    [
        ({"all": False, "accounts": [], "sets": []}, set()),
        ({"all": True, "accounts": [], "sets": []}, {"job1", "job2"}),
        ({"all": False, "accounts": ["anna"], "sets": []}, {"job1"}),
        ({"all": False, "accounts": [], "sets": ["set2"]}, {"job2"}),
    ],
)
def test_previews_are_made_for_those_who_look(watch, seen, previews):
    runs = [run(), run("bert", "set2", "job2")]
    told, link = previews(runs)
    told.watch(watch)
    for one in runs:
        one.progress = progress()
    told.news()
    until(lambda: sum(len(jobs) for _, jobs, _ in link.sent) == 2)
    found = {
        job["job_id"]: parts[job["preview"]]
        for _, jobs, parts in link.sent
        for job in jobs
        if "preview" in job
    }
    assert found.keys() == seen
    for data in found.values():
        assert Image.open(io.BytesIO(data)).format == TYPE.partition("/")[2].upper()


def test_previews_can_be_switched_off(previews):
    one = run()
    told, link = previews([one], previews=False)
    told.watch({"all": True, "accounts": [], "sets": []})
    one.progress = progress()
    told.news()
    until(lambda: link.sent)
    assert "preview" not in link.sent[0][1][0]
