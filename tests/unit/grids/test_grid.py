"""Grids: what stands where, what is said of it, and what happens when something fails."""

import shutil
from inspect import signature

import pytest
from PIL import Image, ImageFont

import limner
from limner.cli.grid import grid
from limner.engine.loaded import load
from limner.engine.models import ModelCache
from limner.errors import InvalidRequest, NumericalError
from limner.grids.axes import Axis
from limner.grids.grid import LIMIT, Grid, cell_requests, draw
from limner.grids.sheet import _font
from limner.images.infotext import parse_infotext
from limner.images.metadata import read_record, read_texts
from limner.request import GenerationRequest


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


def ask(**fields):
    return GenerationRequest.of({"prompt": "a cat", "steps": 1, "width": 64, "height": 64, **fields})


def picture(color, size=(64, 64), **fields):
    from limner.images.picture import Picture
    from limner.images.record import Record

    request = ask(seed=1, sampler="euler", sigma_schedule="uniform", guidance_scale=1.0, **fields)
    record = Record(request=request, model={"name": "m"}, environment={"limner": "0"})
    return Picture(Image.new("RGB", size, color), record)


def test_each_place_has_its_picture(model):
    sheet = limner.grid(model, ask(), x="steps=1,2", y="guidance_scale=1,5,9", z="sampler=euler,ddim")
    assert sorted(sheet.pictures) == list(range(12))
    assert not sheet.errors
    requests = [sheet.pictures[place].record.request for place in range(12)]
    assert [(r.sampler, r.guidance_scale, r.steps) for r in requests] == [
        (sampler, scale, steps)
        for sampler in ("euler", "ddim")
        for scale in (1.0, 5.0, 9.0)
        for steps in (1, 2)
    ]
    assert len({request.seed for request in requests}) == 1
    alone = model.generate(request=requests[7]).images[0]
    assert sheet.pictures[7].tobytes() == alone.tobytes()


def test_the_sheet_says_what_it_is(model, tmp_path):
    sheet = limner.grid(model, ask(seed=3), x="steps=1,2", y="replace=cat,dog")
    path = tmp_path / "sheet.png"
    sheet.image.save(path)
    record = read_record(path)
    assert record.grid == {"x": {"steps": ("1", "2")}, "y": {"replace": ("cat", "dog")}}
    assert record.request == sheet.pictures[0].record.request
    fields = parse_infotext(read_texts(path)["parameters"])
    said = {"Script": "X/Y/Z plot", "X Type": "steps", "X Values": "1, 2", "Y Type": "replace", "Seed": "3"}
    assert {**fields, **said} == fields


def test_pictures_stand_in_their_places():
    colors = ["red", "lime", "blue", "black"]
    pictures = {place: picture(color) for place, color in enumerate(colors)}
    sheet = Grid(Axis("steps", (1, 2)), Axis("seed", (1, 2)), pictures=pictures).image
    where = {color: _box(sheet, color) for color in ("red", "lime", "blue")}
    assert all(box[2] - box[0] == box[3] - box[1] == 64 for box in where.values())
    assert where["red"][1] == where["lime"][1] < where["blue"][1]
    assert where["red"][0] == where["blue"][0] < where["lime"][0]


def _box(image, color):
    """Left, top, right and bottom of what has a color."""
    from PIL import ImageChops

    difference = ImageChops.difference(image.convert("RGB"), Image.new("RGB", image.size, color)).convert("L")
    box = difference.point(lambda value: 255 * (value == 0)).getbbox()
    assert box is not None
    return box


def test_pictures_of_many_sizes_and_long_labels():
    pictures = {0: picture("red", (64, 128)), 1: picture("blue", (128, 64))}
    names = ["a very long value with many words in it", "Donaudampfschifffahrtsgesellschaft" * 3]
    sheet = Grid(Axis("replace", names), z=Axis("prompt", ["a long title " * 30]), pictures=pictures).image
    red, blue = _box(sheet, "red"), _box(sheet, "blue")
    assert (red[2] - red[0], red[3] - red[1]) == (64, 128)
    assert (blue[2] - blue[0], blue[3] - blue[1]) == (128, 64)
    assert sheet.width < 400


def test_other_scripts_take_a_font_that_has_them(monkeypatch):
    """It is looked for by name in the system; here there is one for Cyrillic."""
    font_manager = pytest.importorskip("matplotlib.font_manager")
    system, real = font_manager.findfont("DejaVu Sans"), ImageFont.truetype

    def truetype(name, *more, **how):
        return real(system if name == "DejaVuSans.ttf" else name, *more, **how)

    monkeypatch.setattr(ImageFont, "truetype", truetype)
    assert _font(16, "красный дом").path == system
    assert _font(16, "café").path == system
    assert _font(16, "red, 猫").getname() == ImageFont.load_default(16).getname()  # neither has it


def test_places_that_are_empty_and_that_failed():
    sheet = Grid(
        Axis("steps", (1, 2, 3)), pictures={1: picture("red")}, errors={2: NumericalError("no number")}
    )
    assert sheet.image.record.grid == {"x": {"steps": ("1", "2", "3")}}
    with pytest.raises(InvalidRequest, match="no image"):
        _ = Grid(Axis("steps", (1, 2))).image


def test_a_sheet_that_would_be_too_large_is_smaller(monkeypatch):
    monkeypatch.setattr("limner.grids.grid._MOST_PIXELS", 64 * 64)
    grid = Grid(Axis("steps", (1, 2, 3, 4)), pictures={0: picture("red")})
    assert grid.scale == 0.5
    red = _box(grid.image, "red")
    assert red[2] - red[0] == 32


def test_a_grid_is_one_batch(model):
    """All its pictures share the forward passes of an engine."""
    from limner.engine.engine import Engine

    engines = []

    class Seen(Engine):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            engines.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limner.grids.grid.Engine", Seen)
        limner.grid(model, ask(steps=2), x="seed=1-4", y="guidance_scale=2,3")
    [engine] = engines
    assert engine.stats().rows["Denoise"] == 16
    assert engine.stats().forwards["Denoise"] <= 4


def test_models_are_an_axis_of_a_cache(checkpoint_folder, tmp_path):
    other = shutil.copytree(checkpoint_folder, tmp_path / "other")
    request = ask(model=str(checkpoint_folder), seed=1)
    axis = Axis("model", (str(checkpoint_folder), str(other)))
    sheet = limner.grid(ModelCache(precision="fp32"), request, x="seed=1,2", y=axis)
    names = [sheet.pictures[place].record.model["name"] for place in range(4)]
    assert names == [str(checkpoint_folder)] * 2 + [str(other)] * 2
    with pytest.raises(InvalidRequest, match="one model was given"):
        limner.grid(load(checkpoint_folder), request, x=axis)


@pytest.mark.parametrize(
    ("fields", "axes", "words"),
    [
        ({}, {}, "needs an axis"),
        ({}, {"x": "seed=1-10", "y": "steps=1-11"}, "10 x 11 = 110 images, more than 100"),
        ({}, {"x": "clip_skip=1,60"}, "clip_skip is 60"),
        ({}, {"x": "strength=0.5,0.6"}, "strength is 0.5"),
        ({}, {"x": "prompt=a cat,(a:1.2.3)"}, "1.2.3"),
        ({}, {"x": "lora:ink=0,1"}, "no LoRA 'ink'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(model, fields, axes, words, monkeypatch):
    monkeypatch.setattr("limner.grids.grid.draw", None)
    with pytest.raises(limner.LimnerError, match=words):
        limner.grid(model, ask(**fields), **axes)


def test_variations_have_one_seed_too():
    first, second = cell_requests(ask(variation_strength=0.5), [Axis("steps", (1, 2))])
    assert first.variation_seed == second.variation_seed is not None
    assert [r.seed for r in cell_requests(ask(), [Axis("seed", (1, 2))])] == [1, 2]


def test_what_fails_fails_alone(model, monkeypatch):
    real = type(model).picture

    def picture(self, image, spec, *rest):
        if spec.request.steps == 2:
            raise NumericalError("no number")
        return real(self, image, spec, *rest)

    monkeypatch.setattr(type(model), "picture", picture)
    sheet = limner.grid(model, ask(), x="steps=1,2,3")
    assert sorted(sheet.pictures) == [0, 2]
    assert str(sheet.errors[1]) == "no number"


def test_closing_stops(model):
    drawing = draw([ask(), *(ask(seed=seed, steps=500) for seed in range(9))], model)
    assert next(drawing)[0] == 0
    drawing.close()


def test_the_command_has_the_limit_of_the_function():
    """It cannot take it from there, as that would import torch."""
    assert signature(grid).parameters["limit"].default == LIMIT
