"""What the torch backend does for GPUs, as far as it can be tried without one."""

import pytest
import torch
from torch import nn

from limner.backends.native import NativeBackend, _padded
from limner.backends.offload import blocks
from limner.engine.loaded import load
from limner.errors import InvalidRequest
from limner.weights.checkpoint import read_checkpoint


@pytest.mark.parametrize(("rows", "filled"), [(1, 1), (2, 2), (3, 4), (6, 8), (8, 8)])
def test_batches_are_padded_to_powers_of_two(rows, filled):
    batch = torch.arange(rows * 3.0).reshape(rows, 3)
    full = _padded(batch)
    assert full.shape == (filled, 3)
    assert torch.equal(full[:rows], batch)
    assert all(torch.equal(row, batch[-1]) for row in full[rows:])


class Moved(nn.Module):
    def __init__(self, name, log):
        super().__init__()
        self.name, self.log = name, log

    def to(self, where):
        self.log.append((self.name, str(where)))
        return self


def test_only_the_network_that_runs_is_on_a_small_gpu(checkpoint_folder):
    backend = NativeBackend(read_checkpoint(checkpoint_folder), torch.device("cuda"), "fp16", offload="model")
    log = []
    text, unet = Moved("text", log), Moved("unet", log)
    for network in (text, unet, unet, text):
        assert backend.networks.on_device(network) is network
    assert log == [("text", "cuda"), ("text", "cpu"), ("unet", "cuda"), ("unet", "cpu"), ("text", "cuda")]

    whole = NativeBackend(read_checkpoint(checkpoint_folder), torch.device("cuda"), "fp16")
    assert backend.bytes == 2 * max(backend.networks.checkpoint.parameters_by_part.values()) < whole.bytes


def test_attention_is_chosen_when_a_model_is_loaded(checkpoint_folder):
    ask = {"prompt": "a house", "width": 64, "height": 64, "steps": 2, "seed": 1}
    drawn = {}
    for attention in ("auto", "fused", "sliced"):
        model = load(checkpoint_folder, precision="fp32", attention=attention)
        drawn[attention] = model.generate(**ask).images[0]
    told = {name: picture.record.environment["attention"] for name, picture in drawn.items()}
    assert told == {"auto": "fused", "fused": "fused", "sliced": "in blocks from 0 scores"}
    one, other = (
        torch.frombuffer(bytearray(drawn[name].tobytes()), dtype=torch.uint8).int()
        for name in ("fused", "sliced")
    )
    assert (one - other).abs().max() <= 1
    with pytest.raises(InvalidRequest, match="attention is 'flash'; expected auto, fused, sliced"):
        load(checkpoint_folder, attention="flash")


def test_blocks_on_a_small_gpu(checkpoint_folder):
    backend = NativeBackend(
        read_checkpoint(checkpoint_folder), torch.device("cuda"), "fp16", offload="sequential"
    )
    assert next(backend.networks.unet.parameters()).device.type == "cpu"
    assert all(block._forward_pre_hooks for block in blocks(backend.networks.unet))
    with pytest.raises(InvalidRequest, match="offload is 'disk'; expected none, model, sequential"):
        load(checkpoint_folder, device="cpu", offload="disk")
