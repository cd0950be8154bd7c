"""The geometry of a network without a config, derived from the shapes of its tensors."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet_config import UNetConfig

from .contents import Shape, Shapes

# Transformer blocks and layers of one network: XL's U-Net has 70. Building a module takes time even on meta.
_MOST_BLOCKS = 500


def compvis_encoder(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Fields of an `EncoderConfig` from the names of CompVis and SGM (`input_blocks.1.0…`).

    The number of heads, which shapes do not determine, and `addition_time_embed_dim` are missing.

    Raises:
        KeyError: A tensor is missing that every such network has.
        ValueError, LookupError: No network has these shapes.
    """
    levels: list[list[tuple[int, int]]] = [[]]  # channels and transformer blocks of each residual block
    for index in count(1):
        block = f"{prefix}input_blocks.{index}"
        if f"{block}.0.op.weight" in shapes:
            levels.append([])
        elif (convolution := shapes.get(f"{block}.0.in_layers.2.weight")) is not None:
            depth = count_of(shapes, block + ".1.transformer_blocks.{}.norm1.weight")
            levels[-1].append((convolution[0], depth))
        else:
            break
    return _encoder(
        shapes,
        [level[0] for level in levels],
        layers=len(levels[0]),
        first=f"{prefix}input_blocks.0.0.weight",
        middle=f"{prefix}middle_block.1.",
        pooled=f"{prefix}label_emb.0.0.weight",
    )


def hub_encoder(shapes: Shapes) -> dict[str, Any]:
    """As `compvis_encoder`, from the names of the hub (`down_blocks.0.resnets.0…`)."""
    levels: list[tuple[int, int]] = []
    for level in count():
        block = f"down_blocks.{level}"
        if (convolution := shapes.get(f"{block}.resnets.0.conv1.weight")) is None:
            break
        depth = count_of(shapes, block + ".attentions.0.transformer_blocks.{}.norm1.weight")
        levels.append((convolution[0], depth))
    return _encoder(
        shapes,
        levels,
        layers=count_of(shapes, "down_blocks.0.resnets.{}.conv1.weight"),
        first="conv_in.weight",
        middle="mid_block.attentions.0.",
        pooled="add_embedding.linear_1.weight",
    )


def compvis_unet(shapes: Shapes, prefix: str, *, pooled: int, sizes: int) -> UNetConfig:
    """Geometry of a U-Net from the names of CompVis and SGM.

    Args:
        pooled: Width of the pooled text embedding, for a U-Net that takes one.
        sizes: Number of size conditions that it takes with that.

    Raises:
        KeyError, ValueError, LookupError: as `compvis_encoder`.
    """
    guidance = shapes.get(f"{prefix}time_embed.cond_proj.weight")
    out = shapes[f"{prefix}out.2.weight"][0]
    return _unet(compvis_encoder(shapes, prefix), out, guidance, pooled, sizes)


def hub_unet(shapes: Shapes, *, pooled: int, sizes: int) -> UNetConfig:
    """As `compvis_unet`, from the names of the hub."""
    guidance = shapes.get("time_embedding.cond_proj.weight")
    return _unet(hub_encoder(shapes), shapes["conv_out.weight"][0], guidance, pooled, sizes)


def _unet(
    shared: dict[str, Any], out_channels: int, guidance: Shape | None, pooled: int, sizes: int
) -> UNetConfig:
    kinds, time = shared["down_block_types"], shared["projection_class_embeddings_input_dim"]
    return UNetConfig(
        **shared,
        out_channels=out_channels,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        attention_head_dim=head_counts(shared),
        addition_time_embed_dim=(time - pooled) // sizes if time else None,
        time_cond_proj_dim=guidance[1] if guidance else None,
    )


def _encoder(
    shapes: Shapes,
    levels: Sequence[tuple[int, int]],
    *,
    layers: int,
    first: str,
    middle: str,
    pooled: str,
) -> dict[str, Any]:
    """Fields of an `EncoderConfig`.

    Args:
        levels: Channels and number of transformer blocks of each level.
        first, pooled: Keys of the first convolution, and of the embedding of pooled text and sizes, if any.
        middle: Prefix of the attention in the middle block.
    """
    widths, depths = zip(*levels, strict=True)
    deepest = count_of(shapes, middle + "transformer_blocks.{}.norm1.weight")
    bounded(layers * sum(depths) + deepest)
    depths_are_one = {*depths, deepest} <= {0, deepest}
    time = shapes.get(pooled)
    return {
        "in_channels": shapes[first][1],
        "block_out_channels": widths,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "layers_per_block": layers,
        "cross_attention_dim": shapes[f"{middle}transformer_blocks.0.attn2.to_k.weight"][1],
        "transformer_layers_per_block": deepest if depths_are_one else tuple(depth or 1 for depth in depths),
        "use_linear_projection": len(shapes[f"{middle}proj_in.weight"]) == 2,
        "addition_embed_type": "text_time" if time else None,
        "projection_class_embeddings_input_dim": time[1] if time else None,
    }


def compvis_vae(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Fields of a `VAEConfig` from the names of CompVis (`encoder.down.0.block.0…`). Raises as above."""
    return _vae(
        shapes,
        prefix,
        widths=prefix + "encoder.down.{}.block.0.conv1.weight",
        layers=prefix + "encoder.down.0.block.{}.conv1.weight",
    )


def hub_vae(shapes: Shapes) -> dict[str, Any]:
    """As `compvis_vae`, from the names of the hub (`encoder.down_blocks.0.resnets.0…`)."""
    return _vae(
        shapes,
        "",
        widths="encoder.down_blocks.{}.resnets.0.conv1.weight",
        layers="encoder.down_blocks.0.resnets.{}.conv1.weight",
    )


def _vae(shapes: Shapes, prefix: str, *, widths: str, layers: str) -> dict[str, Any]:
    return {
        "in_channels": shapes[f"{prefix}encoder.conv_in.weight"][1],
        "out_channels": shapes[f"{prefix}decoder.conv_out.weight"][0],
        "latent_channels": shapes[f"{prefix}post_quant_conv.weight"][0],
        "block_out_channels": tuple(
            shapes[widths.format(level)][0] for level in range(count_of(shapes, widths))
        ),
        "layers_per_block": bounded(count_of(shapes, layers)),
    }


def clip_text(
    shapes: Shapes, prefix: str, *, projection: bool = False, activation: str | None = None
) -> CLIPTextConfig:
    """Geometry of a text encoder from transformers' names (`text_model.encoder.layers.0…`).

    Args:
        projection: Whether its projection is part of it.
        activation: That of the layers; None: as published for its width, "quick_gelu" of 768 channels (CLIP)
            and "gelu" of 1024 and 1280 (OpenCLIP).

    Raises:
        KeyError, ValueError: as `compvis_encoder`.
    """
    root = f"{prefix}text_model."
    vocabulary, width = shapes[f"{root}embeddings.token_embedding.weight"]
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=shapes[f"{root}encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=bounded(count_of(shapes, root + "encoder.layers.{}.layer_norm1.weight")),
        num_attention_heads=heads_of(width),
        hidden_act=activation or ("gelu" if width in (1024, 1280) else "quick_gelu"),
        projection_dim=shapes[f"{prefix}text_projection.weight"][0] if projection else width,
        vocab_size=vocabulary,
        max_position_embeddings=shapes[f"{root}embeddings.position_embedding.weight"][0],
        projection=projection,
    )


def openclip_text(shapes: Shapes, prefix: str, *, projection: bool) -> CLIPTextConfig:
    """As `clip_text`, from OpenCLIP's names (`transformer.resblocks.0…`).

    Args:
        projection: Whether its projection is part of it, as in XL. 2.x has none, and takes the output of the
            last layer but one, so that the hub has no last layer; nor have files made from the hub's.
    """
    layers = count_of(shapes, prefix + "transformer.resblocks.{}.ln_1.weight")
    if not projection:
        layers -= layers == 24 or f"{prefix}text_projection" in shapes
    vocabulary, width = shapes[f"{prefix}token_embedding.weight"]
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=bounded(layers),
        num_attention_heads=heads_of(width),
        hidden_act="gelu",
        projection_dim=shapes[f"{prefix}text_projection"][1] if projection else 512,
        vocab_size=vocabulary,
        max_position_embeddings=shapes[f"{prefix}positional_embedding"][0],
        projection=projection,
    )


def count_of(shapes: Shapes, name: str) -> int:
    """Number of keys that match a pattern with 0, 1, 2 …."""
    return next(index for index in count() if name.format(index) not in shapes)


def bounded(blocks: int) -> int:
    """The number of blocks itself. Raises ValueError if it is implausibly large, or 0."""
    if not 0 < blocks <= _MOST_BLOCKS:
        raise ValueError(f"a network of {blocks} blocks; expected 1 to {_MOST_BLOCKS}")
    return blocks


def heads_of(width: int) -> int:
    """Number of attention heads of 64 channels, as in all networks but the U-Net of 1.x."""
    return max(1, width // 64)


def head_counts(encoder: Mapping[str, Any]) -> int | tuple[int, ...]:
    """`attention_head_dim` of a U-Net or ControlNet with these fields: 1.x, whose projections are 1x1
    convolutions, has 8 heads at every level."""
    if not encoder["use_linear_projection"]:
        return 8
    return tuple(map(heads_of, encoder["block_out_channels"]))
