"""The OpenVINO backend draws what PyTorch draws, and converts a checkpoint once."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from limner import openvino_runtime
from limner.backends import openvino, openvino_graphs
from limner.engine.loaded import load
from limner.errors import InvalidRequest, OutputError
from limner.request import GenerationRequest
from limner.weights.checkpoint import read_checkpoint

if not (find_spec("openvino") and find_spec("nncf")):
    pytest.skip("needs limner[openvino]", allow_module_level=True)

BF16 = pytest.mark.skipif(openvino.auto_precision() != "bf16", reason="this CPU does not compute in bf16")


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> Path:
    """One cache for this file, as the checkpoint has the same weights in every test."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def surroundings(kept, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(kept))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small spend their time in waiting for each other's threads
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def torch_model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


def draw(model, prompt="a red house", **fields):
    """[N, H, W, 3] of 0 to 255."""
    result = model.generate(prompt, **{"steps": 3, "width": 64, "height": 64, "seed": 5, **fields})
    return torch.stack([pixels(image) for image in result.images])


def pixels(image):
    """[H, W, 3] of 0 to 255."""
    return torch.from_numpy(np.array(image)).int()


def distance(one, other):
    return (one - other).norm() / other.norm()


def inputs(rows=3, height=8, width=8, length=16):
    """Latents, timesteps and context."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 4, height, width, generator=generator)
    context = torch.randn(rows, length, 32, generator=generator)
    return x, torch.tensor([999.0, 1.0, 500.5])[:rows], context


@pytest.mark.long
def test_fp32_draws_the_pictures_of_torch(checkpoint_folder, torch_model):
    model = load(checkpoint_folder, backend="openvino", precision="fp32")
    for fields in ({"num_images": 2}, {"clip_skip": 2}, {"width": 72, "height": 80}):
        # fp32 sums in another order, so a value that lies between two colours may fall to either side.
        assert (draw(model, **fields) - draw(torch_model, **fields)).abs().max() <= 1
    second = draw(model, seed=6, exact=True)[0]
    assert (draw(model, num_images=2, exact=True)[1] == second).all()
    record = model.generate("x", steps=1, width=64, height=64).images[0].record.environment
    assert (record["backend"], record["precision"]) == ("openvino", "fp32")
    assert record["openvino"]


def test_every_network_agrees_with_torch_in_fp32(checkpoint_folder, torch_model):
    ours, theirs = load(checkpoint_folder, backend="openvino", precision="fp32").backend, torch_model.backend
    with torch.inference_mode():
        for rows, height, width, length in ((3, 8, 8, 16), (1, 9, 7, 32), (2, 16, 12, 48)):
            x, timesteps, context = inputs(rows, height, width, length)
            output, deep = theirs.denoise(x, timesteps, context, keep=True)
            pairs = list(zip(ours.denoise(x, timesteps, context, keep=True), (output, deep), strict=True))
            pairs += [(ours.denoise(x, timesteps, context)[0], output)]
            nearby = x, timesteps * 0.9, context
            reused, nothing = ours.denoise(*nearby, deep=deep)
            assert nothing is None
            pairs += [(reused, theirs.denoise(*nearby, deep=deep)[0])]
            pairs += [(ours.decode(x), theirs.decode(x))]
            images = theirs.decode(x)
            pairs += zip(ours.encode(images), theirs.encode(images), strict=True)
            ids = torch.randint(0, 512, (rows, 16))
            for skip in (1, 2):
                pairs += zip(ours.encode_text(ids, skip), theirs.encode_text(ids, skip), strict=True)
            for one, other in pairs:
                assert one.shape == other.shape
                assert distance(one, other) < 1e-5  # fp32 has seven digits; about forty layers


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=BF16)])
def test_a_row_is_the_same_alone_and_in_company(checkpoint_folder, precision):
    backend = load(checkpoint_folder, backend="openvino", precision=precision).backend
    x, timesteps, context = inputs()
    together, _ = backend.denoise(x, timesteps, context)
    # Sums over more rows may go in another order, which in bf16 decides about its eighth bit.
    most = {"fp32": 1e-5, "bf16": 1e-2}[precision]
    for row in range(3):
        alone, _ = backend.denoise(x[row, None], timesteps[row, None], context[row, None])
        assert distance(together[row, None], alone) < most


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=BF16), "int8"])
def test_a_graph_of_the_usual_shape_computes_what_the_open_one_does(checkpoint_folder, precision):
    backend = load(checkpoint_folder, backend="openvino", precision=precision).backend
    unet = backend.checkpoint.unet_config
    x, timesteps, context = inputs(2, unet.sample_size, unet.sample_size)
    usual, kept = backend.denoise(x, timesteps, context, keep=True)
    once = backend.bytes
    longer = inputs(3, unet.sample_size, unet.sample_size)
    for mine, other in zip(longer, (x, timesteps, context), strict=True):
        mine[:2] = other
    opened, deep = backend.denoise(*longer, keep=True)
    # int8: where a rounding differs, a number may fall to the next of 255 levels.
    most = {"fp32": 1e-5, "bf16": 1e-2, "int8": 5e-2}[precision]
    assert distance(usual, opened[:2]) < most
    assert distance(kept, deep[:2]) < most
    assert (backend.denoise(x, timesteps, context)[0] == usual).all()  # whatever ran before
    assert backend.bytes > 1.3 * once  # two graphs have weights of their own


@BF16
def test_bf16_is_near(checkpoint_folder, torch_model):
    model = load(checkpoint_folder, backend="openvino")
    assert model.backend.precision == "bf16"  # as "auto" decides
    x, timesteps, context = inputs()
    exact, _ = torch_model.backend.denoise(x, timesteps, context)
    # A bf16 number is off by up to 0.4 %, and these networks make 1 % of it. A timestep rounded to bf16
    # would make 4 %, most of all in the row at timestep 999.
    for row, found in enumerate(model.backend.denoise(x, timesteps, context)[0]):
        assert distance(found, exact[row]) < 0.02
    assert 0 < (draw(model) - draw(torch_model)).abs().float().mean() < 4


def test_int8_is_near(checkpoint_folder, torch_model, capfd):
    model = load(checkpoint_folder, backend="openvino", precision="int8")
    assert not capfd.readouterr().out  # of progress bars
    assert model.backend.bytes < torch_model.backend.bytes / 1.9
    x, timesteps, context = inputs()
    exact, deep = torch_model.backend.denoise(x, timesteps, context, keep=True)
    found, kept = model.backend.denoise(x, timesteps, context, keep=True)
    # 255 levels for the whole range of a feature map, and what lies beyond the range seen is cut off.
    assert 0 < distance(found, exact) < 0.1
    assert 0 < distance(kept, deep) < 0.1
    assert (draw(model) - draw(torch_model)).abs().float().mean() < 8


def test_company_of_many_kinds(checkpoint_folder, torch_model):
    """Requests that differ in all that may differ in one batch."""
    model = load(checkpoint_folder, backend="openvino", precision="fp32")
    requests = [
        GenerationRequest(prompt=prompt, width=64, height=64, seed=seed, steps=steps, sampler=sampler)
        for seed, (prompt, steps, sampler) in enumerate(
            [("a", 3, "euler"), ("a house " * 12, 4, "dpmpp_2m"), ("blue", 2, "heun"), ("", 3, "ddim")]
        )
    ]
    found, expected = (
        [handle.result().images[0] for handle in [m.engine.submit(request) for request in requests]]
        for m in (model, torch_model)
    )
    for one, other in zip(found, expected, strict=True):
        one, other = (torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8).int() for i in (one, other))
        assert (one - other).abs().max() <= 1


@pytest.fixture
def conversions(monkeypatch):
    """The parts that have been converted, in order."""
    made, convert = [], openvino_graphs.converted

    def counted(part, checkpoint):
        made.append(part)
        return convert(part, checkpoint)

    monkeypatch.setattr(openvino_graphs, "converted", counted)
    return made


@pytest.mark.long
def test_a_checkpoint_is_converted_once(checkpoint_folder, conversions, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    first = draw(load(checkpoint_folder, backend="openvino", precision="fp32"))
    assert conversions == ["text_encoder", "unet", "decoder"]
    assert (draw(load(checkpoint_folder, backend="openvino", precision="fp32")) == first).all()
    assert len(conversions) == 3

    [entry] = (tmp_path / "cache" / "openvino").glob("*/unet-*")
    weights = entry / "graph.bin"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (entry.with_name(entry.name.replace("unet", "decoder")) / "graph.xml").write_text("<net")
    assert (draw(load(checkpoint_folder, backend="openvino", precision="fp32")) == first).all()
    assert conversions[3:] == ["unet", "decoder"]
    load(checkpoint_folder, backend="openvino", precision="fp32")
    assert len(conversions) == 5


def test_the_same_weights_in_another_network_are_another_entry(checkpoint_folder):
    path = checkpoint_folder / "unet" / "config.json"
    entries = set()
    for heads in (2, 4):
        path.write_text(json.dumps({**json.loads(path.read_text()), "attention_head_dim": heads}))
        checkpoint = read_checkpoint(checkpoint_folder)
        for precision in ("fp32", "int8"):
            backend = openvino.OpenVINOBackend(checkpoint, torch.device("cpu"), precision)
            entries |= {backend._graphs.folder("unet"), backend._graphs.folder("decoder")}
    assert len(entries) == (8 if openvino.auto_precision() == "bf16" else 6)


def test_an_interrupted_conversion_leaves_nothing(checkpoint_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    library = openvino_runtime.library("openvino")
    save = library.save_model

    def interrupted(graph, path, **options):
        save(graph, path, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "save_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(checkpoint_folder, backend="openvino", precision="fp32")
    monkeypatch.setattr(library, "save_model", lambda graph, path, **options: path.write_text("<net"))
    with pytest.raises(OutputError, match="cannot be written"):  # as on a full disk
        load(checkpoint_folder, backend="openvino", precision="fp32")
    assert not [path for path in (tmp_path / "cache" / "openvino").rglob("*") if path.is_file()]


def test_threads_may_look_for_the_libraries_at_once():
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(openvino_runtime.library, ["openvino", "nncf"] * 400))
    assert {library.__name__ for library in found} == {"openvino", "nncf"}


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16")])
def test_a_precision_that_is_not_computed_is_refused(checkpoint_folder, precision, monkeypatch):
    monkeypatch.setattr(openvino, "auto_precision", lambda: "fp32")  # as on an older CPU
    with pytest.raises(InvalidRequest, match=f"{precision}.*does not compute") as error:
        load(checkpoint_folder, backend="openvino", precision=precision)
    assert error.value.hint == "use fp32, int8"


def test_it_runs_on_the_cpu_alone(checkpoint_folder):
    checkpoint = load(checkpoint_folder).checkpoint
    with pytest.raises(InvalidRequest, match="'cuda:0'; the openvino backend runs on the CPU"):
        openvino.OpenVINOBackend(checkpoint, torch.device("cuda:0"), "fp32")


@pytest.mark.parametrize(("missing", "precision"), [("openvino", "auto"), ("nncf", "int8")])
def test_a_missing_library_is_named(checkpoint_folder, missing, precision, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InvalidRequest, match=f"needs {missing}") as error:
        load(checkpoint_folder, backend="openvino", precision=precision)
    assert error.value.hint == 'pip install "limner[openvino]"'


def test_no_use_is_reported():
    """Both libraries would report to a server; the package that does it is not even imported."""
    program = (
        "import sys; from limner import openvino_runtime; openvino_runtime.library('nncf');"
        "openvino_runtime.library('openvino'); print('openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_signals_are_handled_after_models_are_gone(checkpoint_folder):
    """Of two of OpenVINO's runtimes, the one made first is freed first: see `core`."""
    program = (
        "import pathlib, signal, sys, torch; from limner.backends.openvino import OpenVINOBackend;"
        "from limner.weights.checkpoint import read_checkpoint;"
        "made = read_checkpoint(pathlib.Path(sys.argv[1])), torch.device('cpu'), 'fp32';"
        "backends = [OpenVINOBackend(*made).read() for _ in range(2)]; del backends[0], backends[0];"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled')); signal.raise_signal(signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", program, checkpoint_folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr
