"""Pictures: deterministic, where the scene says, and such that kinds and colours can be told apart."""

import random
from dataclasses import replace

import numpy as np
import pytest

from limner.picturebook.scene import COLOURS, KINDS, Scene, Thing
from limner.picturebook.things import PIGMENTS, proportions
from limner.picturebook.world import World, regions, render


def alone(
    kind: str, colour: str, extent: float = 0.45, x: float = 0.5, y: float = 0.6, **scene: str
) -> Scene:
    thing = Thing(kind, colour, "medium", x, y, extent, grounded=False)
    return Scene((thing,), "alone", **{"setting": "meadow", **scene})


def pixels(scene: Scene, size: int = 128) -> np.ndarray:
    return np.asarray(render(scene, size), dtype=np.int16)


def drawn(scene: Scene, size: int = 128) -> np.ndarray:
    """Where the things are: the pixels that differ from the same scene without them."""
    return np.abs(pixels(scene, size) - pixels(replace(scene, things=()), size)).max(axis=2) > 12


def silhouette(scene: Scene) -> np.ndarray:
    """The colourless look of one thing, on a grid of 24 x 24 over its box."""
    box = regions(scene)[0]
    return np.asarray(
        render(scene).crop(tuple(map(round, box))).convert("L").resize((24, 24)), dtype=np.float64
    )


@pytest.mark.parametrize("style", ["flat", "outlined", "pixel"])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_equal_scenes_give_equal_pixels(style: str, size: int) -> None:
    scene = replace(World().sample(random.Random(5)), style=style)
    picture = render(scene, size)
    assert picture.size == (size, size)
    assert picture.mode == "RGB"
    assert picture.tobytes() == render(replace(scene), size).tobytes()
    assert (
        picture.tobytes()
        != render(replace(scene, time="night" if scene.time == "day" else "day"), size).tobytes()
    )


def test_a_picture_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="smallest is 32"):
        render(alone("cat", "red"), 16)


def test_things_fill_their_boxes_and_nothing_else() -> None:
    for kind in KINDS:
        scene = alone(kind, "purple")
        rows, columns = np.nonzero(drawn(scene))
        left, top, right, bottom = regions(scene)[0]
        # The rim is 0.009 of the picture, 1.2 pixels, and one more goes to rounding and smoothing.
        assert columns.min() == pytest.approx(left, abs=2.5)
        assert columns.max() + 1 == pytest.approx(right, abs=2.5)
        assert rows.min() == pytest.approx(top, abs=2.5)
        assert rows.max() + 1 == pytest.approx(bottom, abs=2.5)
        assert max(proportions(kind)) == pytest.approx(1)


def test_a_picture_at_twice_the_size_is_the_same_picture() -> None:
    rng = random.Random(6)
    for _ in range(10):
        scene = replace(World().sample(rng), style="flat")
        large = np.asarray(render(scene, 256).reduce(2), dtype=np.int16)
        # Things are placed on whole pixels of each size, so edges may differ, areas may not.
        assert np.abs(large - pixels(scene)).mean() < 3


@pytest.mark.parametrize("time", ["day", "sunset", "night"])
def test_the_colour_named_dominates_every_kind(time: str) -> None:
    names = list(PIGMENTS)
    table = np.array([PIGMENTS[name] for name in names])
    for kind in KINDS:
        for colour in COLOURS:
            scene = alone(kind, colour, time=time)
            seen = pixels(scene)[drawn(scene)]
            nearest = ((seen[:, None, :] - table) ** 2).sum(axis=2).argmin(axis=1)
            counts = np.bincount(nearest, minlength=len(names))
            assert names[counts.argmax()] == colour, (kind, colour)


@pytest.mark.parametrize("time", ["day", "sunset", "night"])
@pytest.mark.parametrize(
    "setting", ["meadow", "sea", "beach", "desert", "snow", "city", "forest", "mountains"]
)
def test_every_colour_stands_out_everywhere(setting: str, time: str) -> None:
    for colour in COLOURS:
        assert drawn(alone("house", colour, setting=setting, time=time)).sum() > 900, colour


def test_kinds_are_told_apart_by_the_nearest_template() -> None:
    """Centred, scaled gray looks in one colour and place find the kind in another, at 34 pixels."""

    def normalised(grid: np.ndarray) -> np.ndarray:
        return (grid - grid.mean()) / grid.std()

    templates = {kind: normalised(silhouette(alone(kind, "blue"))) for kind in KINDS}
    shapes = {kind: proportions(kind)[0] / proportions(kind)[1] for kind in KINDS}
    wrong = []
    for kind in KINDS:
        for colour in ("red", "blue", "purple", "black"):
            scene = alone(kind, colour, extent=0.27, x=0.4137, y=0.53, setting="snow")
            seen = normalised(silhouette(scene))
            aspect = shapes[kind]
            distances = {
                k: ((seen - t) ** 2).mean() + abs(np.log(aspect / shapes[k])) for k, t in templates.items()
            }
            if min(distances, key=distances.__getitem__) != kind:
                wrong.append((kind, colour, min(distances, key=distances.__getitem__)))
    assert not wrong


def test_weather_style_and_backdrop_show() -> None:
    scene = alone("cat", "red")
    variants = [scene, replace(scene, style="outlined"), replace(scene, style="pixel")]
    variants += [replace(scene, weather=weather) for weather in ("cloudy", "rain", "snowfall")]
    variants += [replace(scene, backdrop=backdrop) for backdrop in (1, 2, 3)]
    assert len({render(variant).tobytes() for variant in variants}) == len(variants)


def test_pixel_art_is_made_of_squares() -> None:
    picture = pixels(alone("cat", "red", style="pixel"))
    assert (picture[::2] == picture[1::2]).all()
    assert (picture[:, ::2] == picture[:, 1::2]).all()
