"""Every published form of adapter file, by its names and shapes at full size, without remainder."""

import hashlib
import math
import re
from collections.abc import Callable

import pytest

from limner.adapters.adapter import read_adapter
from limner.adapters.targets import Targets

MODELS = {"sd15": "sd15", "sd21": "sd21-768-v", "sdxl": "sdxl-base"}
HERE = (
    *("attnprocs-sd15-r4.prefixed", "attnprocs-sd15-r4.unprefixed", "attnprocs-sdxl-r16.unprefixed"),
    *("diffusers-sd15-r4.lora_down_up", "diffusers-sdxl-r16.lora_down_up"),
    *("kohya-sd15-locon-r8-a8-c4-ca1", "kohya-sd15-lora-r8-a4", "kohya-sdxl-lora-r16-a8"),
    *("lycoris-sd15-dora-r8-a4", "lycoris-sd15-full-diff", "lycoris-sd15-locon-conv-tucker-r8-a4-c4-ca1"),
    *("lycoris-sd15-loha-r8-a4", "lycoris-sdxl-loha-r8-a4"),
    *("lycoris-sd15-lokr-f8-full", "lycoris-sd15-lokr-f8-r4-decompose-both"),
    *("peft-sd15-dora-r8.lora_A_B", "peft-sd15-r4.lora_A_B", "peft-sdxl-r16.lora_A_B"),
)
Shapes = dict[str, tuple[int, ...]]


def read_manifest(text: str) -> Shapes:
    lines = (line.split("\t") for line in text.splitlines())
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in lines}


def as_manifest(shapes: Shapes) -> str:
    return "".join(f"{key}\t{'x'.join(map(str, shapes[key])) or 'scalar'}\n" for key in sorted(shapes))


def check_loads(path, shapes: Shapes, targets: Targets) -> None:
    adapter = read_adapter(path, targets)
    assert adapter.unapplied == ()
    assert adapter.warnings == ()
    ends = r"(\.alpha|\.(lora|hada|lokr|dora)_\w+(\.weight)?|\.lora\.\w+\.weight|_lora\.\w+\.weight|\.diff"
    ends += r"|\.lora_linear_layer\.\w+\.weight)"
    modules = {re.sub(rf"{ends}$", "", key) for key in shapes}
    assert sum(map(len, adapter.patches.values())) == len(modules)


@pytest.mark.parametrize("name", HERE)
def test_every_key_is_applied(reference, published, hollow, name):
    shapes = read_manifest((reference / "lora" / f"{name}.txt").read_text())
    check_loads(hollow("adapter.safetensors", shapes), shapes, published(MODELS[name.split("-")[1]]))


@pytest.mark.parametrize("family", MODELS)
def test_names_of_kohya_are_those_of_modules(reference, published, family):
    targets = published(MODELS[family])
    lines = (reference / "lora" / f"module-map-{family}.tsv").read_text().splitlines()[1:]
    assert len(lines) > 200
    for line in lines:
        name, place, shape = line.split("\t")
        part, module = place.split("/")
        assert targets.names[name] == (part, module)
        assert targets.kohya[part, module] == name
        assert "x".join(map(str, targets.shapes[part][f"{module}.weight"])) == shape


@pytest.mark.parametrize("family", MODELS)
def test_no_two_modules_share_a_name(published, family):
    targets = published(MODELS[family])
    assert len(set(targets.kohya.values())) == len(targets.kohya)
    by_underscores = [name for name in targets.names if re.match(r"lora_(unet|te\d?)_", name)]
    modules = {targets.names[name] for name in by_underscores}
    assert modules == targets.kohya.keys()
    # None was overwritten by another's.
    assert all(targets.names[name] == place for place, name in targets.kohya.items())


def test_xl_may_be_named_as_diffusers_does(published):
    targets = published("sdxl-base")
    module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    for name in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "lycoris_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        f"unet.{module}",
        f"base_model.model.{module}",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q",
    ):
        assert targets.names[name] == ("unet", module)


# Manifests that were kept back, derived here from the targets; their hashes say that they are the very same.


def lora(rank: int, kernel_rank: int | None = None) -> Callable[[tuple[int, ...]], Shapes]:
    def of(shape):
        out, into, *kernel = shape
        r = kernel_rank if kernel_rank and kernel not in ([], [1, 1]) else rank
        return {
            "alpha": (),
            "lora_down.weight": (r, into, *kernel),
            "lora_up.weight": (out, r, *[1] * len(kernel)),
        }

    return of


def dora(rank: int, *, on_output: bool) -> Callable[[tuple[int, ...]], Shapes]:
    def of(shape):
        ones = [1] * (len(shape) - 2)
        scale = (shape[0], 1, *ones) if on_output else (1, shape[1], *ones)
        return lora(rank)(shape) | {"dora_scale": scale}

    return of


def loha(rank: int, kernel_rank: int) -> Callable[[tuple[int, ...]], Shapes]:
    def of(shape):
        out, into, *kernel = shape
        shapes: Shapes = {"alpha": ()}
        for i in (1, 2):
            if kernel in ([], [1, 1]):
                shapes |= {f"hada_w{i}_a": (out, rank), f"hada_w{i}_b": (rank, into)}
            else:
                r = kernel_rank
                shapes |= {f"hada_w{i}_a": (r, out), f"hada_w{i}_b": (r, into), f"hada_t{i}": (r, r, *kernel)}
        return shapes

    return of


def lokr(rank: int, factor: int) -> Callable[[tuple[int, ...]], Shapes]:
    def split(n: int) -> tuple[int, int]:
        small = factor if factor > 0 else math.isqrt(n)
        if n % small:
            small = max(d for d in range(1, small + 1) if n % d == 0)
        return min(small, n // small), max(small, n // small)

    def of(shape):
        (a, b), (c, d) = split(shape[0]), split(shape[1])
        kernel = shape[2:]
        large = (
            {"lokr_w2_a": (b, rank), "lokr_w2_b": (rank, d * math.prod(kernel))}
            if rank < max(b, d) / 2
            else {"lokr_w2": (b, d, *kernel)}
        )
        return {"alpha": (), "lokr_w1": (a, c), **large}

    return of


def peft(rank: int) -> Callable[[tuple[int, ...]], Shapes]:
    def of(shape):
        out, into, *kernel = shape
        return {"lora_A.weight": (rank, into, *kernel), "lora_B.weight": (out, rank, *[1] * len(kernel))}

    return of


def processors(rank: int) -> Callable[[tuple[int, ...]], Shapes]:
    return lambda shape: {"down.weight": (rank, shape[1]), "up.weight": (shape[0], rank)}


def processor_name(part: str, module: str) -> str:
    if part == "unet":
        attention, _, layer = module.removesuffix(".0").rpartition(".")
        return f"unet.{attention}.processor.{layer}_lora"
    attention, _, layer = module.removesuffix("_proj").rpartition(".")
    return f"{part}.{attention}.to_{layer}_lora"


ATTENTIONS = r"(unet/.*\.attentions\..*|text_encoder.*(self_attn|mlp)\..*)"
PROJECTIONS = r"(unet/.*attn[12]\..*|text_encoder.*self_attn\..*)"
BLOCKS = r"(unet/.*_blocks?\..*|text_encoder.*(self_attn|mlp)\..*)"
LAYERS = r"(unet/.*|text_encoder.*(self_attn|mlp)\..*)"
KEPT_BACK = {
    "kohya-sd21-lora-r8-a4": (ATTENTIONS, lora(8)),
    "kohya-sdxl-locon-r16-a8-c8-ca4": (BLOCKS, lora(16, 8)),
    "lycoris-sd15-dora-r8-a4-wd_on_input": (ATTENTIONS, dora(8, on_output=False)),
    "lycoris-sdxl-dora-r8-a4": (ATTENTIONS, dora(8, on_output=True)),
    "lycoris-sd15-loha-conv-tucker-r8-a4-c4-ca1": (LAYERS, loha(8, 4)),
    "lycoris-sd15-lokr-f-1-r4-a1": (LAYERS, lokr(4, -1)),
    "lycoris-sdxl-lokr-f8-r8-a1": (BLOCKS, lokr(8, 8)),
    "peft-sd15-r8-conv.lora_A_B": (r"(unet/.*_blocks?\..*|text_encoder.*self_attn\..*)", peft(8)),
    "attnprocs-sdxl-r16.prefixed": (PROJECTIONS, processors(16)),
}


@pytest.mark.parametrize("name", KEPT_BACK)
def test_what_was_kept_back_is_applied(reference, published, hollow, name):
    pattern, form = KEPT_BACK[name]
    targets = published(MODELS[name.split("-")[1]])
    shapes: Shapes = {}
    for (part, module), kohya in targets.kohya.items():
        weight = tuple(targets.shapes[part][f"{module}.weight"])
        if len(weight) > 1 and re.fullmatch(pattern, f"{part}/{module}"):
            named = {"peft": f"{part}.{module}", "attnprocs": f"{processor_name(part, module)}"}
            prefix = named.get(name.split("-")[0], kohya)
            shapes |= {f"{prefix}.{end}": shape for end, shape in form(weight).items()}
    index = (reference / "keys" / "INDEX.tsv").read_text()
    [line] = [line for line in index.splitlines() if line.startswith(f"lora/{name}.txt\t")]
    assert line.split("\t")[2] == str(len(shapes))
    assert line.endswith(hashlib.sha256(as_manifest(shapes).encode()).hexdigest())
    check_loads(hollow("adapter.safetensors", shapes), shapes, targets)
