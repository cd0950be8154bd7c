"""Adapters of requests: named, applied, in company, and gone again."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from limner import GenerationRequest, load
from limner.catalogue.hashes import lora_hash
from limner.engine.engine import Engine
from limner.errors import InvalidCheckpoint, InvalidRequest, LimnerError, ModelNotFound, PickleRefused
from limner.model.adapters import AdapterLibrary
from limner.prompts.chunks import tokenize_prompt
from limner.prompts.networks import take_networks
from limner.request import Lora
from limner.request.loras import with_loras
from limner.weights.checkpoint import load_unet, read_checkpoint
from limner.weights.tensors import open_tensors, write_tensors

ASK = {"prompt": "a cat", "negative_prompt": "fog", "seed": 3, "steps": 4, "width": 64, "height": 64}
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
GEGLU = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
TEXT_LAYER = "text_model.encoder.layers.0.self_attn.q_proj"


def write_lora(path, *layers, rank=2, alpha=1.0, size=None, seed=0):
    """kohya's form, with values that change a picture visibly."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        name = ("lora_te_" if layer == TEXT_LAYER else "lora_unet_") + layer.replace(".", "_")
        out = (size or {}).get(layer, 32)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank, generator=generator)
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, 32, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    write_tensors(path, tensors)
    return tensors


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "adapters"
    (folder / "more").mkdir(parents=True)
    write_lora(folder / "one.safetensors", LAYER, TEXT_LAYER)
    write_lora(folder / "more" / "two.safetensors", LAYER, seed=1)
    return folder


@pytest.fixture
def model(checkpoint_folder, folder):
    return load(checkpoint_folder, precision="fp32", lora_dirs=[folder], embedding_dirs=[folder])


def draw(model, **fields):
    return model.generate(**{**ASK, **fields}).images[0]


def bits(picture):
    return picture.tobytes()


def test_the_golden_tags(reference):
    lines = (reference / "prompts" / "extra_networks.jsonl").read_text().splitlines()
    assert len(lines) > 8
    for line in lines:
        entry = json.loads(line)
        text, tags = take_networks(entry["prompt"])
        networks = {}
        for tag in tags:
            given = {"positional": list(tag.positional), "named": dict(tag.named)}
            networks.setdefault(tag.kind, []).append(given)
        expected = {
            kind: [{key: one[key] for key in ("positional", "named")} for one in found]
            for kind, found in entry["networks"].items()
        }
        assert (text, networks) == (entry["stripped"], expected), entry["id"]


@pytest.mark.parametrize(
    ("tag", "lora"),
    [
        ("<lora:one>", Lora(name="one")),
        ("<lora:one:0.8>", Lora(name="one", weight=0.8)),
        ("<lora:one:0.5:0.9>", Lora(name="one", weight=0.9, text_weight=0.5)),
        ("<lora:one:1:unet=-0.5>", Lora(name="one", weight=-0.5, text_weight=1.0)),
        ("<lyco:one:te=0.25>", Lora(name="one", weight=0.25)),
    ],
)
def test_tags_in_the_prompt(tag, lora):
    request = with_loras(GenerationRequest(prompt=f"a {tag}cat"))
    assert (request.prompt, request.loras) == ("a cat", (lora,))


def test_what_is_no_tag():
    literal = GenerationRequest(prompt="a <lora:one>", prompt_syntax="literal")
    assert with_loras(literal) == literal
    for tag in ("<lora:one:x>", "<lora:one:1:2:3>", "<lora:one:nan>", "<lora:one:dyn=8>"):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            with_loras(GenerationRequest(prompt=tag))


def test_loras_as_text():
    request = GenerationRequest.of({"prompt": "", "loras": ["one", "two:0.5", "C:/x/y.safetensors:-1:0.25"]})
    assert request.loras == (
        Lora(name="one"),
        Lora(name="two", weight=0.5),
        Lora(name="C:/x/y.safetensors", weight=-1.0, text_weight=0.25),
    )


def test_the_networks_are_those_of_the_formula(model, folder):
    tensors = write_lora(folder / "one.safetensors", LAYER, TEXT_LAYER)
    used = model.adapters.used([Lora(name="one", weight=0.5)])
    backend = model.backend.adapted(model.adapters.weighted(used))
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 32)
    with torch.inference_mode():
        found, _ = backend.denoise(x, torch.tensor([900.0, 20.0]), context)

    network = load_unet(model.checkpoint)
    stored = network.get_parameter(f"{LAYER}.weight").data
    name = "lora_unet_" + LAYER.replace(".", "_")
    up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
    expected = stored + 0.5 * (1.0 / 2) * (up @ down)
    network.get_parameter(f"{LAYER}.weight").data = expected
    with torch.inference_mode():
        theirs = network(x, torch.tensor([900.0, 20.0]), context)
        before, _ = model.backend.denoise(x, torch.tensor([900.0, 20.0]), context)
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 0.01


def test_an_adapter_comes_and_goes(model):
    plain = bits(draw(model, exact=True))
    adapted = bits(draw(model, prompt="a cat<lora:one>", exact=True))
    assert adapted != plain
    assert bits(draw(model, exact=True)) == plain
    assert bits(draw(model, loras=(Lora(name="one"),), exact=True)) == adapted
    assert bits(draw(model, prompt="a cat<lora:one:0>", exact=True)) == plain
    text, unet = (draw(model, prompt=f"a cat<lora:one:{w}>", exact=True) for w in ("1:0", "0:1"))
    assert len({plain, adapted, bits(text), bits(unet)}) == 4


def test_requests_with_different_adapters_in_company(model):
    tags = ["", "<lora:one>", "<lora:two:0.5>", "<lora:one:0.3><lora:two>", "a dog<lora:one>"]
    asks = [GenerationRequest.of({**ASK, "prompt": f"a cat{tag}", "exact": True}) for tag in tags]
    alone = [bits(model.generate(request=ask).images[0]) for ask in asks]
    with Engine(model) as engine:
        handles = [engine.submit(ask) for ask in asks * 2]
        together = [bits(handle.result().images[0]) for handle in handles]
    assert together == alone * 2
    assert len(set(alone)) == 5


def test_another_file_under_the_same_name_is_another_adapter(model, folder):
    first = bits(draw(model, prompt="a cat<lora:one>", exact=True))
    write_lora(folder / "one.safetensors", LAYER, TEXT_LAYER, seed=5, alpha=2.0)
    assert bits(draw(model, prompt="a cat<lora:one>", exact=True)) != first


def test_the_record_names_them(model, folder):
    picture = draw(model, prompt="a cat<lora:one:0.5:0.9>")
    assert picture.record.request.loras == (Lora(name="one", weight=0.9, text_weight=0.5),)
    assert picture.record.request.prompt == "a cat"
    text = picture.record.infotext()
    assert text.startswith("a cat<lora:one:0.5:0.9>\n")
    assert f'Lora hashes: "one: {lora_hash(folder / "one.safetensors")[:12]}"' in text
    again = model.generate(request=picture.record.request)
    assert bits(again.images[0]) == bits(picture)


def test_what_cannot_be_had_or_used(model, folder):
    with pytest.raises(ModelNotFound, match=r"no LoRA 'three'.*adapters"):
        draw(model, prompt="<lora:three>")
    write_tensors(folder / "flux.safetensors", {"double_blocks.0.lora_A.weight": torch.zeros(2, 2)})
    with pytest.raises(LimnerError, match="not an adapter for this model"):
        draw(model, prompt="<lora:flux>")
    tensors = {f"lora_unet_nowhere.{end}": torch.ones(2, 2) for end in ("lora_up.weight", "lora_down.weight")}
    name = "lora_unet_" + LAYER.replace(".", "_")
    tensors |= {f"{name}.lora_up.weight": torch.ones(32, 1), f"{name}.lora_down.weight": torch.ones(1, 32)}
    write_tensors(folder / "part.safetensors", tensors)
    [picture] = model.generate(**{**ASK, "prompt": "a cat<lora:part>"}).images
    assert any("no effect" in told and "lora_unet_nowhere" in told for told in picture.record.warnings)


def test_linked_folders_are_searched(model, folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    write_lora(disk / "far.safetensors", LAYER, seed=4)
    write_tensors(disk / "farword.safetensors", {"emb_params": torch.randn(2, 32)})
    (folder / "linked").symlink_to(disk)
    (folder / "round").symlink_to(folder)
    (disk / "round").symlink_to(folder)
    plain = bits(draw(model, exact=True))
    assert bits(draw(model, prompt="a cat<lora:far>", exact=True)) != plain
    model = load_again(model)
    assert bits(draw(model, prompt="a farword", exact=True)) != bits(draw(model, prompt="a word", exact=True))


def test_of_one_name_the_file_that_fits_the_model_is_used(model, folder):
    expected = bits(draw(model, prompt="a cat<lora:two>", exact=True))
    name = "lora_unet_" + LAYER.replace(".", "_")
    other = {f"{name}.lora_up.weight": torch.ones(64, 2), f"{name}.lora_down.weight": torch.ones(2, 64)}
    for sub in ("first", "zlast"):  # before the one that fits, and behind it
        (folder / sub).mkdir()
        write_tensors(folder / sub / "two.safetensors", other)
    picture = draw(model, prompt="a cat<lora:two>", exact=True)
    assert bits(picture) == expected
    assert picture.record.warnings == ()
    write_lora(folder / "zlast" / "two.safetensors", LAYER, seed=5)
    picture = draw(model, prompt="a cat<lora:two>", exact=True)
    assert bits(picture) == expected
    [warning] = picture.record.warnings
    assert str(folder / "more" / "two.safetensors") in warning
    assert "zlast/two" in warning
    chosen = draw(model, prompt="a cat<lora:zlast/two>", exact=True)
    assert bits(chosen) != expected
    assert chosen.record.warnings == ()


def test_of_one_word_the_file_that_fits_the_model_is_used(model, folder):
    fits, other = (
        {"emb_params": torch.randn(2, 32)},
        {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)},
    )
    pictures = []
    for at, tensors in enumerate((fits, other, fits)):
        (folder / f"{at}").mkdir()
        write_tensors(folder / f"{at}" / "negword.safetensors", tensors)
        picture = draw(load_again(model), prompt="a negword", exact=True)
        pictures.append(bits(picture))
        if at < 2:
            assert picture.record.warnings == ()
    assert len(set(pictures)) == 1
    [warning] = picture.record.warnings
    assert f"{folder / '0' / 'negword.safetensors'} is used" in warning
    assert "2/negword" in warning
    (folder / "0" / "negword.safetensors").unlink()
    write_tensors(folder / "0" / "negword.safetensors", {"emb_params": torch.randn(2, 32)})
    picture = draw(load_again(model), prompt="a 2/negword", exact=True)
    assert bits(picture) == pictures[0]
    assert picture.record.warnings == ()


def test_previews_are_no_words(model, folder):
    write_tensors(folder / "lampword.safetensors", {"emb_params": torch.randn(2, 32)})
    expected = bits(draw(load_again(model), prompt="a lampword", exact=True))
    torch.save(
        {"*": open_tensors(folder / "lampword.safetensors")["emb_params"].clone()}, folder / "lampword.bin"
    )
    (folder / "lampword.safetensors").unlink()
    for preview in ("lampword.png", "lampword.preview.png"):
        Image.new("RGB", (8, 8)).save(folder / preview)
    for note in ("lampword.json", "lampword.civitai.info", "lampword.txt"):
        (folder / note).write_text("{}")
    picture = draw(load_again(model), prompt="a lampword", exact=True)
    assert bits(picture) == expected
    assert picture.record.warnings == ()


def test_a_lora_in_a_pickle_is_named_as_one_with_the_command_that_converts_it(model, folder):
    torch.save({"a.lora_up.weight": torch.zeros(2, 2)}, folder / "pytorch_lora_weights.bin")
    with pytest.raises(PickleRefused, match="is a pickle") as caught:
        draw(model, prompt="<lora:pytorch_lora_weights>")
    assert "limner convert" in caught.value.hint
    assert "--to tensors --allow-pickle" in caught.value.hint


def test_several_threads_look_files_up_at_once(checkpoint_folder, folder):
    for seed in range(8):
        write_lora(folder / f"n{seed}.safetensors", LAYER, seed=seed)
        write_tensors(
            folder / f"w{seed}.safetensors", {"emb_params": torch.full((seed + 1, 32), float(seed))}
        )
    library = AdapterLibrary(read_checkpoint(checkpoint_folder), [folder], [folder])
    words = library.words(())

    def look_up(seed: int) -> tuple[str, tuple[int, ...]]:
        [used] = library.used([Lora(name=f"n{seed % 8}")])
        return library.read(used).name, words.ids(f"w{seed % 8}")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look_up, range(64)))
    table = words.table("text_encoder")
    for seed, (name, ids) in enumerate(found):
        assert name == f"n{seed % 8}"
        assert len(ids) == seed % 8 + 1
        assert all(table[i - 514].eq(seed % 8).all() for i in ids)


def test_an_adapter_that_goes_while_it_is_used_fails_its_own_request_alone(model, folder):
    with Engine(model) as engine:
        ask = GenerationRequest.of({**ASK, "prompt": "a cat<lora:one>", "steps": 60})
        lost, other = engine.submit(ask), engine.submit(GenerationRequest.of({**ASK, "steps": 60}))
        next(iter(lost))
        (folder / "one.safetensors").unlink()
        with pytest.raises(InvalidCheckpoint, match=r"one\.safetensors is missing"):
            lost.result()
        assert len(other.result().images) == 1


def test_words_of_their_own(model, folder):
    plain = bits(draw(model, prompt="a Zebra-x", exact=True))
    write_tensors(folder / "zebra-x.safetensors", {"emb_params": torch.randn(3, 32)})
    assert bits(draw(load_again(model), prompt="a (Zebra-x:1.2)", exact=True)) != plain
    first = bits(draw(load_again(model), prompt="a Zebra-x", exact=True))
    assert first != plain
    assert bits(draw(load_again(model), prompt="a Zebra-xy", exact=True)) != first
    write_tensors(folder / "wide.safetensors", {"emb_params": torch.randn(1, 768)})
    picture = draw(load_again(model), prompt="a wide road")
    assert any("'wide' is read as an ordinary word" in warning for warning in picture.record.warnings)


def load_again(model):
    return load(
        model.checkpoint.folder,
        precision="fp32",
        lora_dirs=model.lora_dirs,
        embedding_dirs=model.embedding_dirs,
    )


def test_a_learned_word_is_its_vectors(model, folder):
    """The states are those of the network whose token embeddings hold the vectors."""
    vectors = torch.randn(2, 32)
    write_tensors(folder / "thing.safetensors", {"thing": vectors})
    library = load_again(model).adapters
    words = library.words(())
    assert words.ids("Thing") == (514, 515)
    network = model.backend.networks.text_encoders["text_encoder"]
    ids = torch.tensor([[512, 514, 515, 65, 513, 513]])
    with torch.inference_mode():
        found, pooled = network(ids, learned=words.table("text_encoder"))
        embed = network.text_model.embeddings
        table = torch.cat([embed.token_embedding.weight, vectors])
        embed.token_embedding = torch.nn.Embedding.from_pretrained(table)
        expected, _ = network(ids)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pooled, found[:, 4])


def test_a_word_stays_within_a_chunk(model, folder):
    write_tensors(folder / "long.safetensors", {"long": torch.randn(10, 32)})
    model = load_again(model)
    words, [tokenizer] = model.adapters.words(()), model.tokenizers.values()
    first, second = tokenize_prompt("abcdefgh long i", tokenizer, words=words).chunks
    assert all(token < 514 for token in first.ids)
    assert second.ids[1:11] == tuple(range(514, 524))


def test_rows_of_one_forward_pass_have_adapters_of_their_own(model, folder):
    """Shared passes give what patched weights give, but for rounding, whoever else is there."""
    write_lora(folder / "wide.safetensors", LAYER, GEGLU, rank=3, size={GEGLU: 256}, seed=2)
    tags = ["", "<lora:one>", "<lora:two:0.5>", "<lora:wide:0.7><lora:two>", "<lora:wide:-1>"]
    asks = [GenerationRequest.of({**ASK, "prompt": f"a cat{tag}"}) for tag in tags]
    patched = [model.generate(request=ask.model_copy(update={"exact": True})).images[0] for ask in asks]
    alone = [model.generate(request=ask).images[0] for ask in asks]
    with Engine(model) as engine:
        handles = [engine.submit(ask) for ask in asks]
        together = [handle.result().images[0] for handle in handles]
        assert engine.stats().forwards["Denoise"] < 2 * ASK["steps"]  # those that came late join later
    for pictures in zip(alone, together, patched, strict=True):
        one, other, exact = (torch.frombuffer(bytearray(bits(p)), dtype=torch.uint8).int() for p in pictures)
        assert (one - other).abs().max() <= 1
        assert (one - exact).abs().max() <= 1
    assert len({bits(picture) for picture in together}) == 5
