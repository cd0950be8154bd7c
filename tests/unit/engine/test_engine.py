"""Many requests at once: each gets its own picture, in its turn, whatever becomes of the others."""

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from PIL import Image

from limner.cli.main import main
from limner.diffusion.samplers import SAMPLERS
from limner.engine.engine import Engine
from limner.engine.loaded import load
from limner.engine.memory import Limits
from limner.engine.models import ModelCache
from limner.errors import (
    DeadlineExceeded,
    EngineClosed,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    NumericalError,
    OutOfMemory,
    QueueFull,
)
from limner.generation.calls import DecodeLatents, Denoise, EncodeText
from limner.generation.run import run
from limner.generation.story import picture_of
from limner.images.pixels import to_images
from limner.model.loading import find
from limner.model.model import Model
from limner.request import GenerationRequest
from limner.request.resolve import ResolvedRequest
from tests.waiting import DEADLINE, until

PLENTY = 1 << 40


class Spy:
    """A model that notes every forward pass, and can hold it up or let it fail."""

    def __init__(self, model):
        self.model, self.forwards = model, []
        self.gate = threading.Event()
        self.gate.set()
        self.fault = None
        self.spied = replace(model, backend=_SpiedBackend(model.backend, self))

    def count(self, kind):
        return [len(calls) for name, calls in self.forwards if name == kind]


class _SpiedBackend:
    def __init__(self, backend, spy):
        self._backend, self._spy = backend, spy

    def __getattr__(self, name):
        attribute = getattr(self._backend, name)
        if name not in ("encode_text", "denoise", "decode"):
            return attribute

        def forward(*args, **more):
            assert self._spy.gate.wait(DEADLINE)
            self._spy.forwards.append((name, args[0]))
            if self._spy.fault is not None:
                self._spy.fault(name, *args)
            return attribute(*args, **more)

        return forward


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


@pytest.fixture
def spy(model):
    return Spy(model)


def ask(**fields):
    return GenerationRequest.of(
        {"prompt": "a red house", "steps": 3, "width": 64, "height": 64, "seed": 1, **fields}
    )


def alone(model, request):
    [picture] = model.resolve(request).pictures
    return to_images(run(picture_of(picture, model.facts), model))[0]


def far(one, other):
    """The largest difference of two pictures' pixels."""
    one, other = (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (one, other)
    )
    return int((one - other).abs().max())


def mixed(**fields):
    """One request for every second sampler; prompts, steps, sizes and guidance differ."""
    return [
        ask(
            prompt="a red house " * (index % 3),  # contexts of different length
            negative_prompt="a dark and rainy night " * (index % 2),
            seed=index,
            steps=3 + index % 4,
            sampler=sampler,
            height=64 + 16 * (index % 2),
            guidance_scale=1.0 if index % 4 == 0 else 5.0,
            **fields,
        )
        for index, sampler in enumerate([*SAMPLERS][::2])
    ]


def test_a_resolved_request_is_not_resolved_again(model, monkeypatch):
    request = ask(negative_prompt="fog", guidance_scale=1.0, s_noise=1.1, sampler="euler")
    with Engine(model) as engine:
        expected = engine.submit(request).result()
        assert len(expected.warnings) == 2
        resolved = model.resolve(request)
        stored = replace(ResolvedRequest.from_json(resolved.to_json()), warnings=resolved.warnings[:1])
        monkeypatch.setattr(type(model), "resolve", None)
        for given in (resolved, stored):
            handle = engine.submit(given)
            assert handle.request == resolved.request
            found = handle.result()
            assert found.images[0].tobytes() == expected.images[0].tobytes()
            assert found.images[0].record.request == expected.images[0].record.request
            assert found.warnings == expected.warnings


def test_the_command_resolves_its_request_once(checkpoint_folder, tmp_path, monkeypatch, capsys):
    resolved, resolve = [], Model.resolve
    monkeypatch.setattr(Model, "resolve", lambda *given: resolved.append(given) or resolve(*given))
    photo = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((320, 320)).save(photo)
    options = f"--model {checkpoint_folder} --precision fp32 --steps 2 --image {photo} --out {tmp_path}"
    with pytest.raises(SystemExit) as ended:
        main(["generate", "a red house", *options.split()])
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert len(resolved) == len(told.out.splitlines()) == 1
    assert "the image is 320x320" in told.err, "a warning of the resolved request"


@pytest.mark.long
def test_company_does_not_change_a_picture(model):
    requests = mixed()
    expected = [alone(model, request) for request in requests]
    with Engine(model) as engine:
        handles = [engine.submit(request) for request in requests]
        drawn = [handle.result().images[0] for handle in handles]
    assert all(image.tobytes() != drawn[0].tobytes() for image in drawn[1:])
    for one, other in zip(expected, drawn, strict=True):
        assert far(one, other) <= 1  # a batched product is summed in another order


def test_guidance_of_every_kind_shares_forward_passes(spy):
    requests = [
        ask(),
        ask(negative_prompt="fog", perp_neg=1.0),
        ask(prompt="a red house AND a tree :0.5", negative_prompt="fog", perp_neg=1.0, seed=2),
        ask(sampler="euler_cfg_pp", guidance_scale=0.6),
        ask(sampler="dpmpp_2s_a_cfg_pp", negative_prompt="fog", perp_neg=0.5),
        ask(sampler="euler", s_churn=2.0),
        ask(guidance_skip=10.0),
    ]
    expected = [alone(spy.model, request) for request in requests]
    spy.gate.clear()
    with Engine(spy.spied) as engine:
        handles = [engine.submit(request) for request in requests]
        spy.gate.set()
        drawn = [handle.result().images[0] for handle in handles]
    for one, other in zip(expected, drawn, strict=True):
        assert far(one, other) <= 1
    assert max(spy.count("denoise")) > 3  # rows of more than one request


@pytest.mark.long
def test_exact_pictures_are_the_same_bit_for_bit(spy):
    requests = mixed(exact=True)
    expected = [alone(spy.model, request) for request in requests]
    with Engine(spy.spied) as engine:
        company = [engine.submit(request) for request in mixed()]
        handles = [engine.submit(request) for request in requests]
        drawn = [handle.result().images[0] for handle in handles]
        assert all(handle.result() for handle in company)
    for one, other in zip(expected, drawn, strict=True):
        assert one.tobytes() == other.tobytes()


def test_requests_share_forward_passes_and_join_at_any_step(spy):
    begun, go_on = threading.Event(), threading.Event()

    def hold(name, *_):
        if len(spy.count("denoise")) == 2:
            begun.set()
            assert go_on.wait(DEADLINE)

    spy.fault = hold
    with Engine(spy.spied) as engine:
        first = engine.submit(ask(steps=6))
        assert begun.wait(DEADLINE)
        others = [engine.submit(ask(seed=seed, prompt=f"{seed} houses")) for seed in range(2, 5)]
        go_on.set()
        for handle in [first, *others]:
            handle.result()
    rows = spy.count("denoise")
    assert rows[0] == 2  # guided: two rows
    assert max(rows) == 8
    assert sum(rows) == 2 * (6 + 3 * 3)
    stats = engine.stats()
    assert (stats.done, stats.waiting, stats.running) == (4, 0, 0)
    assert stats.rows["Denoise"] == 6 + 3 * 3
    assert stats.forwards["Denoise"] == len(rows)


def test_no_more_rows_run_together_than_the_limit_says(spy):
    class Four(Limits):
        def rows_of(self, model, height, width):
            return 4

    spy.gate.clear()
    with Engine(spy.spied, limits=Four(PLENTY)) as engine:
        handles = [engine.submit(ask(seed=seed)) for seed in range(7)]
        order = []
        for index, handle in enumerate(handles):
            handle.when_done(lambda index=index: order.append(index))
        spy.gate.set()
    assert order == list(range(7))  # oldest first
    assert max(spy.count("denoise")) == 4


def test_sizes_that_cannot_share_take_turns(spy):
    turns = []
    spy.fault = lambda name, x, *_: turns.append(x.shape[2]) if name == "denoise" else None
    spy.gate.clear()
    with Engine(spy.spied) as engine:
        engine.submit(ask(steps=6))
        engine.submit(ask(steps=6, height=96))
        spy.gate.set()
    assert sorted(turns[:4]) == [32, 32, 48, 48]
    assert all(one != next_one for one, next_one in pairwise(turns))


def test_priority_goes_first(spy):
    class One(Limits):
        def rows_of(self, model, height, width):
            return 2

    spy.gate.clear()
    order = []
    with Engine(spy.spied, limits=One(PLENTY)) as engine:
        for name, priority in (("first", 0), ("low", -1), ("high", 5)):
            engine.submit(ask(), priority=priority).when_done(lambda name=name: order.append(name))
        spy.gate.set()
    assert order.index("high") < order.index("low")


def open_for_listener(spy, handle):
    """Open the gate, once somebody hears of every step."""

    def wait_and_open():
        until(lambda: handle._listeners)
        spy.gate.set()

    threading.Thread(target=wait_and_open).start()


def test_progress_tells_every_step_and_hands_over_each_picture(spy):
    spy.gate.clear()
    engine = Engine(spy.spied)
    handle = engine.submit(ask(num_images=2))
    open_for_listener(spy, handle)
    told = list(handle)
    assert [(p.image, p.step) for p in told if p.picture is None and p.image == 1] == [(1, 1), (1, 2), (1, 3)]
    pictures = [p.picture for p in told if p.picture is not None]
    assert [picture.seed for picture in pictures] == [1, 2]
    assert handle.result().images == tuple(pictures)
    assert told[0].latents.shape == (1, 4, 32, 32)
    assert told[-1].seconds_left == 0
    assert told[0].seconds_left > 0
    assert [p.picture for p in handle] == pictures  # whoever comes late still gets them


def test_asyncio(spy):
    async def draw():
        engine = Engine(spy.spied)
        spy.gate.clear()
        one, other = engine.submit(ask()), engine.submit(ask(seed=2))
        open_for_listener(spy, one)
        steps = [progress.step async for progress in one]
        result = await other
        spy.gate.clear()
        given_up = asyncio.ensure_future(_result(engine.submit(ask(steps=200))))
        await asyncio.sleep(0.05)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        spy.gate.set()
        await asyncio.get_running_loop().run_in_executor(None, engine.drain)
        return steps, result, engine.stats()

    steps, result, stats = asyncio.run(draw())
    assert steps == [1, 2, 3, 3]
    assert result.seeds == (2,)
    assert (stats.done, stats.cancelled) == (2, 1)


async def _result(handle):
    return await handle


def test_cancelling_takes_effect_within_a_step(spy):
    begun = threading.Event()

    def hold(name, *_):
        if len(spy.count("denoise")) == 2:
            begun.set()
            until(handle.done)

    spy.fault = hold
    spy.gate.clear()
    engine = Engine(spy.spied)
    handle, other = engine.submit(ask(steps=500)), engine.submit(ask(steps=4, seed=2))
    spy.gate.set()
    assert begun.wait(DEADLINE)
    at = len(spy.forwards)
    assert handle.cancel()
    other.result()
    assert engine.drain(DEADLINE)
    with pytest.raises(CancelledError):
        handle.result()
    assert handle.cancelled()
    assert not other.cancel()
    # The pass that was running still holds its rows; those after it do not.
    assert [len(x) for name, x in spy.forwards if name == "denoise"] == [4, 4, 2, 2]
    assert [len(x) for name, x in spy.forwards[at:] if name == "denoise"] == [2, 2]
    assert engine.stats().cancelled == 1


def test_an_answer_that_is_not_finite_is_that_requests_error_alone(spy):
    def spoil(name, x, *_):
        if name == "denoise":
            x[(x[:, 0, 0, 0] == mark).nonzero()] = torch.nan

    mark = 0.0
    call = next(_denoises(ask(seed=3), spy.model))
    mark = (call.x / (1 + call.sigma**2) ** 0.5)[0, 0, 0, 0]
    spy.fault = spoil
    with Engine(spy.spied) as engine:
        handles = [engine.submit(ask(seed=seed)) for seed in (1, 3, 5)]
        assert [type(handle.exception()) for handle in handles] == [type(None), NumericalError, type(None)]
    assert engine.stats().failed == 1


def _denoises(request, model):
    generation = picture_of(model.resolve(request).pictures[0], model.facts)
    call, answer = next(generation), None
    while True:
        if isinstance(call, Denoise):
            yield call
        [answer] = model.answer([call])
        call = generation.send(answer.value)


def test_half_precision_is_made_good_in_fp32_and_said(checkpoint_folder):
    rough = Spy(load(checkpoint_folder, precision="bf16"))

    def spoil(name, x, *_):
        if name == "decode" or len(rough.count("denoise")) == 2:
            x[0] = torch.nan

    smooth = rough.model.generate(request=ask()).images[0]
    rough.fault = spoil
    result = Engine(rough.spied).submit(ask()).result()
    assert "the U-Net at step 2 produced NaN or infinity in bf16; fp32 was used there" in result.warnings
    assert any(warning.startswith("the autoencoder's decoder produced") for warning in result.warnings)
    assert len(result.warnings) == 2
    assert 0 < far(result.images[0], smooth) <= 40


def test_a_failing_batch_is_split_until_the_culprit_stands_alone(spy):
    def fail(name, x, *_):
        if name == "decode" and ((x.sum((1, 2, 3)) - total).abs() < 1e-2).any():
            raise torch.OutOfMemoryError("no")

    total = torch.tensor(0.0)
    latents = [_final_latents(spy.model, ask(seed=seed)) for seed in range(5)]
    total = (latents[2] / spy.model.checkpoint.vae_config.scaling_factor).sum((1, 2, 3))
    spy.fault = fail
    spy.gate.clear()
    with Engine(spy.spied) as engine:
        handles = [engine.submit(ask(seed=seed, exact=False)) for seed in range(5)]
        spy.gate.set()
        errors = [handle.exception() for handle in handles]
    assert [isinstance(error, OutOfMemory) for error in errors] == [False, False, True, False, False]


def _final_latents(model, request):
    generation = picture_of(model.resolve(request).pictures[0], model.facts)
    call = next(generation)
    while not isinstance(call, DecodeLatents):
        call = generation.send(model.answer([call])[0].value)
    return call.latents


def test_an_unforeseen_error_reaches_its_request_and_the_engine_goes_on(spy, caplog):
    def fail(name, *_):
        raise ZeroDivisionError("oh")

    spy.fault = fail
    engine = Engine(spy.spied)
    with caplog.at_level("ERROR", "limner.engine"), pytest.raises(InternalError, match="oh") as raised:
        engine.submit(ask(), id="seven").result()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert raised.value.retryable
    [line] = caplog.records
    assert "job seven failed" in line.message
    assert line.exc_info
    spy.fault = None
    assert engine.submit(ask()).result().seeds == (1,)


def test_what_is_beyond_the_model_is_refused_and_what_never_fits_too(model):
    engine = Engine(model, limits=Limits(memory=model.backend.bytes + 50_000_000))
    with pytest.raises(InvalidRequest, match="clip_skip is 9"):
        engine.submit(ask(clip_skip=9)).result()
    with pytest.raises(OutOfMemory, match="4096x4096 pixels take about"):
        engine.submit(ask(width=4096, height=4096)).result()
    assert engine.submit(ask()).result()


def test_memory_bounds_the_rows_of_a_forward_pass(spy):
    limits = Limits(PLENTY)
    call = next(_denoises(ask(), spy.model))
    needed = limits.needs(spy.model, call)
    spy.gate.clear()
    with Engine(spy.spied, limits=Limits(spy.model.backend.bytes + int(2.5 * needed))) as engine:
        handles = [engine.submit(ask(seed=seed)) for seed in range(4)]
        spy.gate.set()
        assert all(handle.result() for handle in handles)
    assert max(spy.count("denoise")) == 4


def test_the_queue_is_bounded(spy):
    spy.gate.clear()
    engine = Engine(spy.spied, max_waiting=2, limits=Limits(PLENTY))
    first = engine.submit(ask(num_images=1000))  # more than are drawn at once, so that it waits
    for _ in iter(lambda: engine.stats().running, 0):
        break
    engine.submit(ask())
    with pytest.raises(QueueFull, match="2 requests"):
        engine.submit(ask())
    spy.gate.set()
    first.cancel()
    assert engine.drain(DEADLINE)
    with pytest.raises(EngineClosed):
        engine.submit(ask())


def test_deadlines(spy):
    spy.gate.clear()
    engine = Engine(spy.spied)
    late, other = engine.submit(ask(steps=100), timeout=0.05), engine.submit(ask())
    time.sleep(0.1)
    spy.gate.set()
    with pytest.raises(DeadlineExceeded):
        late.result()
    assert other.result()


def test_leaving_a_block_by_an_error_cancels(spy):
    engine = Engine(spy.spied)

    def fail():
        with engine:
            engine.submit(ask(steps=900))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert engine.stats().cancelled == 1
    assert len(spy.forwards) < 900


def test_nothing_runs_before_the_first_request_nor_long_after_the_last(model):
    own = ("engine", "loader", "fetcher", "planner", "worker", "recorder")

    def threads():
        kinds = tuple(f"limner-{kind}" for kind in own)
        return [thread for thread in threading.enumerate() if thread.name.startswith(kinds)]

    def wait_for_the_end():
        until(lambda: not threads())

    wait_for_the_end()  # of the thread that tests before this one have used
    engine = Engine(model)
    assert not threads()
    for _ in range(2):  # it starts again when it is needed again
        handle = engine.submit(ask())
        assert threads()
        handle.result()
        wait_for_the_end()


def test_texts_are_remembered(spy):
    with Engine(spy.spied) as engine:
        for _ in range(3):
            engine.submit(ask()).result()
    assert len(spy.count("encode_text")) == 1


def test_no_step_reads_files(model, monkeypatch):
    """How much memory is spare is asked at every step, and the weights' headers take long to read."""
    model.generate(request=ask())
    read = []
    monkeypatch.setattr("limner.catalogue.headers.read_header", lambda path: read.append(path))
    model.generate(request=ask(steps=5))
    assert read == []


def test_models_are_loaded_once_and_forgotten_when_others_need_their_room(checkpoint_folder, tmp_path):
    loaded = []

    def finding(options):
        source = find(replace(options, reference=folders[options.reference]))
        loaded.append(options.reference)
        return source

    folders = dict.fromkeys("abc", checkpoint_folder)
    size = load(checkpoint_folder).backend.bytes
    models = ModelCache(2 * size, find=finding)
    with Engine(models) as engine:
        handles = [engine.submit(ask(model=name, num_images=3)) for name in "aabbcca"]
        for handle in handles:
            assert len(handle.result().images) == 3
        assert models.bytes <= 2 * size
    assert {loaded.count("b"), loaded.count("c")} == {1}
    assert loaded.count("a") <= 2
    with pytest.raises(OutOfMemory, match="models may take"):
        Engine(ModelCache(size // 2, find=finding)).submit(ask(model="a")).result()
    with pytest.raises(ModelNotFound):
        Engine(ModelCache()).submit(ask(model="./nowhere")).result()


@pytest.fixture
def room_for_one(checkpoint_folder):
    """A cache with room for one of the models "a" and "b", the names of those that were loaded, and what
    holds loading up."""
    loaded, gate = [], threading.Event()
    gate.set()

    def finding(options):
        loaded.append(options.reference)
        assert gate.wait(DEADLINE)
        return find(replace(options, reference=checkpoint_folder))

    return ModelCache(load(checkpoint_folder).backend.bytes, find=finding), loaded, gate


def test_a_loaded_model_is_held_until_an_image_of_its_request_has_begun(room_for_one):
    models, loaded, _ = room_for_one
    held = models.get_all(ask(model="a"))
    other = threading.Thread(target=models.get_all, args=(ask(model="b"),), daemon=True)
    other.start()
    until(lambda: models.crowded)
    assert models.find_all(ask(model="a")) == held
    models.let_go(held)
    other.join(DEADLINE)
    assert not other.is_alive()
    assert models.find_all(ask(model="a")) is None
    assert loaded == ["a", "b"]


def test_requests_of_models_that_do_not_fit_together_take_turns(room_for_one):
    models, loaded, _ = room_for_one
    with Engine(models) as engine:
        handles = [engine.submit(ask(model=name, steps=1)) for name in "abab"]
        for handle in handles:
            assert handle.result(DEADLINE)
    assert len(loaded) <= 4
    assert not models._held


def test_a_model_that_was_loaded_for_a_cancelled_request_makes_room(room_for_one):
    models, loaded, gate = room_for_one
    gate.clear()
    with Engine(models) as engine:
        given_up = engine.submit(ask(model="a"))
        until(lambda: loaded)
        given_up.cancel()
        other = engine.submit(ask(model="b"))
        gate.set()
        assert other.result(DEADLINE)
    assert loaded == ["a", "b"]
    assert not models._held


def test_calls_are_of_few_kinds(spy):
    """A guard of `Spy`: it sees what a generation asks for."""
    Engine(spy.spied).submit(ask()).result()
    assert [name for name, _ in spy.forwards] == ["encode_text", *["denoise"] * 3, "decode"]
    assert {EncodeText, Denoise, DecodeLatents}
