"""Models by name: shipped, a folder, or fetched from a hub, here a stand-in on the loopback interface."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hub_standin import COMMIT, Hub

from limner.catalogue.catalogue import Catalogue
from limner.catalogue.shipped import SHIPPED_NETWORKS
from limner.errors import InvalidCheckpoint, InvalidRequest, ModelNotFound, PickleRefused, UnsupportedModel
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.weights import hub
from limner.weights.checkpoint import checked, load_unet, read_checkpoint
from limner.weights.control import read_control
from limner.weights.hub import locate_file, locate_model
from limner.weights.hub_parts import locate_network, locate_part
from limner.weights.save import save_checkpoint, write_json
from limner.weights.tensors import write_tensors

REPO = "someone/tiny"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    tokenizer = root / "tokenizer"
    tokenizer.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tokenizer / name).write_text(json.dumps(name))
    geometry = {"block_out_channels": (8,), "norm_num_groups": 4}
    unet = UNetConfig(
        **geometry,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2,
        cross_attention_dim=8,
    )
    text = CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
    )
    networks = {
        "unet": UNet2DConditionModel(unet),
        "vae": AutoencoderKL(VAEConfig(**geometry)),
        "text_encoder": CLIPTextModel(text),
    }
    arguments = {"tokenizer": tokenizer, "scheduler_config": {"_class_name": "DDIMScheduler"}, **networks}
    folder = root / "tiny"
    save_checkpoint(folder, **arguments)
    save_checkpoint(root / "half", **arguments, dtype=torch.float16)
    save_checkpoint(root / "sharded", **arguments, max_file_bytes=8000)
    for path in list(folder.rglob("*.safetensors")):
        half = root / "half" / path.relative_to(folder)
        path.with_suffix(".fp16.safetensors").write_bytes(half.read_bytes())
    (folder / "README.md").write_text("hello")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02.")
    (folder / "whole.ckpt").write_bytes(b"PK")
    return folder


@pytest.fixture
def online(server: Hub, checkpoint: Path) -> Hub:
    server.repos[REPO] = checkpoint
    server.repos["someone/sharded"] = checkpoint.parent / "sharded"
    return server


def test_fetches_what_is_needed_and_no_more(online):
    located = locate_model(REPO)
    assert located.warnings == ()
    assert online.downloads() == {
        "model_index.json",
        "scheduler_config.json",
        "vocab.json",
        "merges.txt",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
    }
    assert load_unet(read_checkpoint(located.folder)).conv_in.weight.dtype == torch.float32
    online.asked.clear()
    assert locate_model(REPO).folder == located.folder
    assert online.downloads() == set()


def test_variant_and_revision(online):
    located = locate_model(REPO, variant="fp16", revision=COMMIT)
    assert {p.name for p in located.folder.rglob("*.safetensors")} == {
        "diffusion_pytorch_model.fp16.safetensors",
        "model.fp16.safetensors",
    }
    assert load_unet(read_checkpoint(located.folder, "fp16")).conv_in.weight.dtype == torch.float16
    online.asked.clear()
    locate_model(REPO, variant="fp16", revision=COMMIT)
    assert online.asked == []  # a commit that is there never changes
    locate_model(REPO, revision=COMMIT)
    assert "model.safetensors" in online.downloads()
    with pytest.raises(ModelNotFound, match="no variant 'bf16': it has only fp16"):
        locate_model(REPO, variant="bf16")
    with pytest.raises(ModelNotFound, match="no revision 'v7'"):
        locate_model(REPO, revision="v7")


@pytest.mark.parametrize(
    ("part", "within", "fetched"),
    [
        ("unet", "", {"diffusion_pytorch_model.safetensors", "config.json"}),
        ("unet", ":unet", {"diffusion_pytorch_model.safetensors", "config.json"}),
        (
            "vae",
            ":vae/diffusion_pytorch_model.safetensors",
            {"diffusion_pytorch_model.safetensors", "config.json"},
        ),
        ("text_encoder", "", {"model.safetensors", "config.json"}),
        ("tokenizer", ":tokenizer", {"vocab.json", "merges.txt"}),
        ("scheduler", "", {"scheduler_config.json"}),
        ("scheduler", ":scheduler/scheduler_config.json", {"scheduler_config.json"}),
    ],
)
def test_a_part_of_a_model(online, checkpoint, part, within, fetched):
    path = locate_part(part, REPO + within)
    assert online.downloads() == fetched
    assert read_checkpoint(checkpoint, parts={part: path}).replaced.keys() == {part}
    online.repos.clear()
    assert locate_part(part, REPO + within) == path  # as it is in the cache


def test_a_part_that_the_hub_does_not_have(online):
    with pytest.raises(ModelNotFound, match="someone/tiny:text_encoder_2 on the hub has no text_encoder_2"):
        locate_part("text_encoder_2", REPO)
    with pytest.raises(ModelNotFound, match="someone/tiny:nothing on the hub has no vae"):
        locate_part("vae", f"{REPO}:nothing")
    with pytest.raises(ModelNotFound, match="someone/nothing"):
        locate_part("vae", "someone/nothing")
    assert online.downloads() == set()


def test_a_sharded_part_with_its_variant(online, checkpoint):
    path = locate_part("unet", "someone/sharded")
    part = read_checkpoint(checkpoint, parts={"unet": path}).parts["unet"]
    assert len(part.files) > 1
    assert all(file.is_file() for file in part.files)
    assert locate_part("unet", REPO, variant="fp16").name == "diffusion_pytorch_model.fp16.safetensors"


def test_sharded(online):
    located = locate_model("someone/sharded")
    assert len(list((located.folder / "unet").glob("*.safetensors"))) > 1
    load_unet(read_checkpoint(located.folder))


def test_the_cache_serves_when_the_hub_does_not(online):
    folder = locate_model(REPO).folder
    online.failing = True
    located = locate_model(REPO)
    assert located.folder == folder
    assert "the hub cannot be asked for someone/tiny" in located.warnings[0]
    assert "its copy in the cache is used" in located.warnings[0]
    with pytest.raises(ModelNotFound, match="the hub cannot be asked for someone/sharded"):
        locate_model("someone/sharded")


def test_no_answer_at_all(online, monkeypatch):
    folder = locate_model(REPO).folder
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert locate_model(REPO).folder == folder
    with pytest.raises(ModelNotFound, match="the hub cannot be asked") as caught:
        locate_model("someone/sharded")
    assert "connection" in caught.value.hint


def test_no_access(online, tmp_path, monkeypatch):
    with pytest.raises(ModelNotFound, match="no model someone/else on the hub") as caught:
        locate_model("someone/else")
    assert "HF_TOKEN" in caught.value.hint
    online.gated.add(REPO)
    with pytest.raises(ModelNotFound, match="restricted") as caught:
        locate_model(REPO)
    assert "HF_TOKEN" in caught.value.hint
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound) as caught:
        locate_model("models/mime")
    assert "did you mean models/mine?" in caught.value.hint


def test_what_cannot_be_used_is_told_before_it_is_fetched(server, tmp_path):
    def repo(name: str, **files: object) -> str:
        for file, content in files.items():
            path = tmp_path / name / file.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        server.repos[f"a/{name}"] = tmp_path / name
        return f"a/{name}"

    xl = repo("xl", model_index_DOT_json={"_class_name": "StableDiffusion3Pipeline"})
    with pytest.raises(UnsupportedModel, match="StableDiffusion3Pipeline"):
        locate_model(xl)
    with pytest.raises(PickleRefused, match=r"v1\.ckpt"):
        locate_model(repo("old", v1_DOT_ckpt=0))
    with pytest.raises(UnsupportedModel, match=r"no model_index\.json"):
        locate_model(repo("single", v1_DOT_safetensors=0, v1_DOT_ckpt=0))
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    index = {
        "_class_name": "StableDiffusionPipeline",
        "tokenizer": ["t", "CLIPTokenizer"],
        "scheduler": ["d", "X"],
    }
    index |= {part: ["x", name] for part, name in parts.items()}
    with pytest.raises(PickleRefused, match="its unet only as a pickle"):
        locate_model(repo("bins", model_index_DOT_json=index, unet__diffusion_pytorch_model_DOT_bin=0))
    with pytest.raises(InvalidCheckpoint, match="no weights of its unet"):
        locate_model(repo("empty", model_index_DOT_json=index))
    assert server.downloads() == {"model_index.json"}


def test_settings_come_from_the_environment(online, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, which are read when a process starts."""
    program = """if True:
        import sys
        from limner.weights.hub import locate_model
        for name in sys.argv[1:]:
            located = locate_model(name)
            print(located.folder, located.warnings)
        """

    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }

    def run(*repos: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *repos],
            env={**environment, "HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "home"), **more},
            capture_output=True,
            text=True,
        )
        assert "Fetching" not in done.stderr  # no progress bar where nobody watches
        return done.stdout + done.stderr

    assert f"home/hub/models--someone--tiny/snapshots/{COMMIT} ()" in run(REPO)
    online.asked.clear()
    offline = run(REPO, "someone/sharded", HF_HUB_OFFLINE="1")
    assert f"home/hub/models--someone--tiny/snapshots/{COMMIT} ()" in offline
    assert "HF_HUB_OFFLINE forbids" in offline
    assert online.asked == []


def test_single_files(online, tmp_path, monkeypatch):
    adapter = online.repos["someone/adapters"] = tmp_path / "repo"
    (adapter / "models" / "image_encoder").mkdir(parents=True)
    (adapter / "models" / "image_encoder" / "config.json").write_text("{}")
    (adapter / "models" / "a.safetensors").write_text("weights")
    reference = "someone/adapters:models/a.safetensors"
    path = locate_file(reference)
    assert path.read_text() == "weights"
    assert locate_file("someone/adapters:models/image_encoder/config.json").is_relative_to(path.parent)
    assert locate_file(str(path)) == path
    with pytest.raises(ModelNotFound, match=r"someone/adapters on the hub has no file b\.safetensors"):
        locate_file("someone/adapters:b.safetensors")
    with pytest.raises(ModelNotFound, match="no model nobody/adapters on the hub"):
        locate_file("nobody/adapters:a.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert locate_file(reference) == path
    with pytest.raises(ModelNotFound, match="cannot be asked"):
        locate_file("someone/adapters:b.safetensors")
    with pytest.raises(ModelNotFound, match="there is no file nowhere"):
        locate_file("nowhere")


def test_folders_and_shipped_models(checkpoint, tmp_path, monkeypatch):
    assert locate_model(checkpoint).folder == locate_model(str(checkpoint)).folder == checkpoint
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "SHIPPED", {"picturebook": checkpoint})
    assert locate_model("picturebook").folder == checkpoint
    monkeypatch.setattr(hub, "SHIPPED", {"picturebook": tmp_path})
    with pytest.raises(ModelNotFound, match="'picturebook' is missing"):
        locate_model("picturebook")
    with pytest.raises(InvalidRequest, match="only models on the hub have revisions"):
        locate_model(checkpoint, revision="main")
    with pytest.raises(ModelNotFound, match="there is no model 'picturbook'") as caught:
        locate_model("picturbook")
    assert caught.value.hint == "did you mean picturebook? shipped: picturebook"
    (tmp_path / "ink.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFound, match="no file or folder") as caught:
        locate_model(tmp_path / "inc.safetensors")
    assert caught.value.hint.startswith(f"did you mean {tmp_path / 'ink.safetensors'}?")
    for name, error in {"v1.ckpt": PickleRefused, "v1.safetensors": InvalidCheckpoint}.items():
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(error):
            locate_model(tmp_path / name)
    for strange in (
        "",
        "..",
        "/",
        "a/b/c",
        "~nobody/x",
        "a\0b",
        "x" * 5000,
        "~nosuchuser/x",
        "a--b/c",
        "org/" + "x" * 200,
        Path("org/name"),
    ):
        with pytest.raises((ModelNotFound, InvalidCheckpoint)):
            read_checkpoint(locate_model(strange).folder)


def test_list_of_models(online, checkpoint, tmp_path):
    ours = {"picturebook": checkpoint.parent / "half", "gone": Path("/nowhere")}

    def list_models():
        hub_cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
        catalogue = Catalogue({}, cache=tmp_path / "hashes", shipped=ours, hub_cache=hub_cache)
        return [checked(entry) for entry in catalogue.entries("checkpoint")]

    assert [info.name for info in list_models()] == ["picturebook"]
    for variant in (None, "fp16"):
        locate_model(REPO, variant=variant)
    shipped, plain, half = list_models()
    assert (shipped.where, plain.where, half.where) == ("shipped", "hub cache", "hub cache")
    assert (shipped.name, plain.name, half.name) == ("picturebook", REPO, REPO)
    assert (plain.variant, half.variant) == (None, "fp16")
    assert (shipped.revision, plain.revision) == (None, COMMIT)
    assert plain.parameters == half.parameters == shipped.parameters > 1000
    assert plain.bytes > 1.5 * half.bytes
    assert plain.family == "custom"
    (plain.path / "vae" / "config.json").unlink()
    assert "vae/config.json is missing" in list_models()[1].problem


def test_a_network_that_is_no_model(server: Hub, tmp_path: Path) -> None:
    root = tmp_path / "network"
    root.mkdir()
    for name in (
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    ):
        (root / name).write_bytes(name.encode())
    server.repos["someone/net"] = root
    found = locate_network("someone/net")
    assert {path.name for path in found.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    half = locate_network("someone/net", variant="fp16")
    assert (half / "diffusion_pytorch_model.fp16.safetensors").is_file()
    server.failing = True
    assert locate_network("someone/net") == found
    with pytest.raises(ModelNotFound, match="nobody/net"):
        locate_network("nobody/net")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_all_shards_of_a_network_are_fetched(server: Hub, tmp_path: Path, variant: str | None) -> None:
    root, dot = tmp_path / "network", f".{variant}" if variant else ""
    root.mkdir()
    shipped = read_control(SHIPPED_NETWORKS["picturebook-edges"])
    network = shipped.load()
    write_json(root / "config.json", network.config.to_dict())
    tensors = sorted(network.state_dict().items())
    shards = [f"diffusion_pytorch_model{dot}-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    weight_map = {}
    for number, shard in enumerate(shards):
        write_tensors(root / shard, dict(tensors[number::3]))
        weight_map |= {name: shard for name, _ in tensors[number::3]}
    index = f"diffusion_pytorch_model.safetensors.index{dot}.json"
    write_json(root / index, {"metadata": {}, "weight_map": weight_map})
    assert len(read_control(root).files) == 3  # a folder that is here
    server.repos["someone/net"] = root
    for reference in ("someone/net", f"someone/net:{index}"):
        found = read_control(locate_network(reference))
        assert [file.name for file in found.files] == shards
        for name, tensor in found.load().state_dict().items():
            assert torch.equal(tensor, network.state_dict()[name])
    server.failing = True
    assert len(read_control(locate_network("someone/net")).files) == 3


def test_a_network_whose_download_broke_off(server: Hub, tmp_path: Path) -> None:
    """What is there in part does not hide why the rest could not be fetched."""
    root = tmp_path / "network"
    root.mkdir()
    index = "diffusion_pytorch_model.safetensors.index.json"
    write_json(root / "config.json", {})
    write_json(root / index, {"weight_map": {"a": "a.safetensors"}})
    (root / "a.safetensors").write_bytes(b"weights")
    server.repos["someone/net"] = root
    for name in ("config.json", index):
        locate_file(f"someone/net:{name}")
    server.failing = True
    with pytest.raises(ModelNotFound, match="the hub cannot be asked for someone/net"):
        locate_network("someone/net")


def test_a_network_in_pickles_alone(server: Hub, tmp_path: Path) -> None:
    root = tmp_path / "network"
    root.mkdir()
    for name in ("config.json", "model.pth"):
        (root / name).write_bytes(b"x")
    server.repos["someone/net"] = root
    with pytest.raises(PickleRefused, match=r"no config\.json next to weights") as refused:
        locate_network("someone/net")
    assert "someone/net:FILE" in (refused.value.hint or "")
