"""A network's geometry, read off the shapes of its tensors, where there is no config to ask."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from .keymaps import Shapes

# Transformer blocks and layers of one network: XL's U-Net has 70. Building a module takes time even on meta.
_MOST_BLOCKS = 500


def compvis_encoder(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Fields of an `EncoderConfig` from the names of CompVis and SGM (`input_blocks.1.0…`).

    All but the number of heads, which shapes do not tell, and `addition_time_embed_dim`.

    Raises:
        KeyError: a tensor that every such network has is not there.
        ValueError, LookupError: these are the shapes of no network.
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


def _encoder(
    shapes: Shapes,
    levels: Sequence[tuple[int, int]],
    *,
    layers: int,
    first: str,
    middle: str,
    pooled: str,
) -> dict[str, Any]:
    """The fields, by either names.

    Args:
        levels: channels and transformer blocks of each.
        first, pooled: keys of the first convolution, and of what takes the pooled text and sizes, if any.
        middle: prefix of the middle's attention.
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


def count_of(shapes: Shapes, name: str) -> int:
    """How many there are of a numbered key."""
    return next(index for index in count() if name.format(index) not in shapes)


def bounded(blocks: int) -> int:
    """A number of blocks. Raises ValueError where no network has as many."""
    if not 0 < blocks <= _MOST_BLOCKS:
        raise ValueError(f"a network of {blocks} blocks; expected 1 to {_MOST_BLOCKS}")
    return blocks


def heads_of(width: int) -> int:
    """Everywhere but in the U-Net of 1.x a head has 64 channels."""
    return max(1, width // 64)
