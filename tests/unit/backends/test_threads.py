"""Forward passes in several threads at once, over one backend, give what each gives alone."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
import torch
from torch import nn

from limner.backends.base import ControlRows
from limner.backends.native import NativeBackend
from limner.backends.packed import PackedConv2d, can_pack
from limner.model.controls import ControlLibrary
from limner.nn.controlnet import ControlNetModel
from limner.nn.unet import Conditions
from limner.nn.unet_config import attended_layers
from limner.request import Control
from limner.weights.checkpoint import read_checkpoint
from limner.weights.save import save_control


@pytest.fixture
def backend(checkpoint_folder):
    return NativeBackend(read_checkpoint(checkpoint_folder), torch.device("cpu"), "fp32").read()


def control_network(folder, unet):
    torch.manual_seed(5)
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_control(folder, network)
    return folder


def passes(backend, networks, folder):
    """Forward passes that differ in all that a request can add to one: name -> what makes it."""
    config = backend.networks.checkpoint.unet_config
    [used] = ControlLibrary(config, 2).used(
        [Control(model=str(control_network(folder / "net", networks["unet"])), image="data:,")]
    )
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    def adapter(name, rows):
        weight = networks["unet"].get_submodule(name).weight
        return [(0.3 * noise(2, weight.shape[1]), 0.3 * noise(weight.shape[0], 2)) for _ in range(rows)]

    names = sorted(name for name in backend.rowwise if ".attn" in name or name.endswith("time_emb_proj"))
    width, found = sum(attended_layers(config).values()), {}
    for index, rows in enumerate((2, 2, 3, 1)):
        inputs = noise(rows, 4, 8, 8), torch.full((rows,), 100.0 + index), noise(rows, 16, 32)
        adapted = Conditions(low_rank={name: adapter(name, rows) for name in names[index:]})
        prompted = Conditions(image_prompts=[noise(rows, 2, 4, width)] * (1 + index % 2))
        controls = [ControlRows(used, noise(rows, 32, 8, 8), noise(rows, used.residuals))]
        found |= {
            f"plain {index}": (backend, inputs, None, ()),
            f"adapters {index}": (backend, inputs, adapted, ()),
            f"image prompts {index}": (backend, inputs, prompted, ()),
            f"controls {index}": (backend, inputs, None, controls),
            f"tiling {index}": (backend.seamless(("x", "y", "xy", "x")[index]), inputs, adapted, controls),
        }
    return found


def run(backend, inputs, conditions, controls):
    with torch.inference_mode():
        return backend.denoise(*inputs, conditions, controls=controls, keep=True)


def test_two_threads_with_different_conditions(backend, networks, tmp_path):
    work = passes(backend, networks, tmp_path)
    alone = {name: run(*given) for name, given in work.items()}
    assert len({output.sum().item() for output, _ in alone.values()}) == len(work)  # each counts
    begin = Barrier(2)

    def some(order):
        begin.wait()
        return [(name, run(*work[name])) for _ in range(3) for name in order]

    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(some, (list(work), list(reversed(work)))):
            for name, outputs in found:
                assert all(torch.equal(*pair) for pair in zip(outputs, alone[name], strict=True)), name


@pytest.mark.skipif(not can_pack(torch.float32), reason="PyTorch was built without oneDNN")
def test_one_convolution_with_many_sizes_in_many_threads():
    """More sizes than a layer keeps weights for, so that threads drop each other's."""
    packed = PackedConv2d(nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False))
    maps = [torch.randn(1, 16, side, side) for side in range(4, 12)]
    alone = [packed(each) for each in maps]

    def some(start):
        order = [(start + index) % len(maps) for index in range(200)]
        return all(torch.equal(packed(maps[index]), alone[index]) for index in order)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(some, range(4)))


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_networks_that_are_offloaded_run_one_at_a_time(checkpoint_folder, offload, monkeypatch):
    """In one place on the device: a second thread waits until the first one's network has run."""
    backend = NativeBackend(read_checkpoint(checkpoint_folder), torch.device("cuda"), "fp16", offload=offload)
    seamless = backend.seamless("x")
    running, log = Event(), []

    class Network(nn.Module):
        def to(self, *where, **how):
            return self

        def decode(self, latents):
            log.append("begin")
            running.set()
            time.sleep(0.05)
            log.append("end")
            return latents

    for derived in (backend, seamless):
        monkeypatch.setattr(derived.networks, "device", torch.device("cpu"))
        derived.networks.__dict__["vae"] = Network()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(backend.decode, torch.zeros(1))
        running.wait()
        second = threads.submit(seamless.decode, torch.zeros(1))
        first.result()
        second.result()
    assert log == ["begin", "end", "begin", "end"]
