"""Every form's change of a weight, against its formula written out in numpy."""

import itertools

import numpy as np
import pytest
import torch

from limner.adapters.patches import read_patches

RNG = np.random.default_rng(0)
OUT, IN, K, RANK, ALPHA = 6, 8, 3, 2, 3.0
SCALE = ALPHA / RANK
LINEAR, CONV, POINT = (OUT, IN), (OUT, IN, K, K), (OUT, IN, 1, 1)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def patch_of(shape, given, **options):
    tensors = {name: torch.as_tensor(value) for name, value in given.items()}
    [(name, patch)] = read_patches(tensors, {"weight": torch.Size(shape)}, **options).items()
    assert name == "weight"
    return patch


def change(shape, given, base=None, **options):
    base = draw(*shape) if base is None else base
    return patch_of(shape, given, **options).change(torch.from_numpy(base)).numpy()


def close(ours, formula):
    # Sums of a few float32 products.
    assert np.abs(formula).max() > 0.1
    np.testing.assert_allclose(ours, formula, rtol=1e-4, atol=1e-5)


def lora(shape):
    out, into, *kernel = shape
    return {"up": draw(out, RANK, *[1] * len(kernel)), "down": draw(RANK, into, *kernel), "alpha": ALPHA}


@pytest.mark.parametrize("shape", [LINEAR, CONV, POINT])
def test_lora(shape):
    given = lora(shape)
    formula = np.zeros(shape)
    for o, i, r in itertools.product(range(OUT), range(IN), range(RANK)):
        formula[o, i] += SCALE * given["up"][o, r].item() * given["down"][r, i]
    close(change(shape, given), formula)


@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_low_rank_of_lora_is_the_same_change(shape):
    patch = patch_of(shape, lora(shape))
    down, up, scale = patch.low_rank(torch.Size(shape))
    assert scale == SCALE
    whole = patch.change(torch.zeros(shape))
    torch.testing.assert_close(scale * torch.einsum("or,ri...->oi...", up, down), whole)


def test_tucker_lora_is_three_convolutions():
    given = {
        "down": draw(RANK, IN, 1, 1),
        "core": draw(RANK, RANK, K, K),
        "up": draw(OUT, RANK, 1, 1),
        "alpha": ALPHA,
    }
    patch = patch_of(CONV, given)
    picture = torch.from_numpy(draw(1, IN, 5, 5))
    conv = torch.nn.functional.conv2d
    tensors = {name: torch.as_tensor(value) for name, value in given.items()}
    three = conv(conv(conv(picture, tensors["down"]), tensors["core"], padding=1), tensors["up"]) * SCALE
    one = conv(picture, patch.change(torch.zeros(CONV)), padding=1)
    close(one.numpy(), three.numpy())
    down, up, scale = patch.low_rank(torch.Size(CONV))
    two = scale * conv(conv(picture, down, padding=1), up[:, :, None, None])
    close(two.numpy(), three.numpy())


@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_loha(shape):
    out, rest = shape[0], int(np.prod(shape[1:]))
    names = {"hada_w1_a": (out, RANK), "hada_w1_b": (RANK, rest)}
    names |= {"hada_w2_a": (out, RANK), "hada_w2_b": (RANK, rest)}
    given = {name: draw(*size) for name, size in names.items()} | {"alpha": ALPHA}
    formula = np.zeros((out, rest))
    for o, i in itertools.product(range(out), range(rest)):
        first = sum(given["hada_w1_a"][o, r] * given["hada_w1_b"][r, i] for r in range(RANK))
        second = sum(given["hada_w2_a"][o, r] * given["hada_w2_b"][r, i] for r in range(RANK))
        formula[o, i] = SCALE * first * second
    close(change(shape, given), formula.reshape(shape))


def tucker(core, left, right):
    """[rank, rank, k, k], [rank, out], [rank, in] -> [out, in, k, k]."""
    kernel = np.zeros((left.shape[1], right.shape[1], K, K))
    for o, i, r, s in itertools.product(*map(range, (*kernel.shape[:2], RANK, RANK))):
        kernel[o, i] += core[r, s] * left[r, o] * right[s, i]
    return kernel


def test_loha_tucker():
    given = {"alpha": ALPHA}
    for i in (1, 2):
        given |= {f"hada_w{i}_a": draw(RANK, OUT), f"hada_w{i}_b": draw(RANK, IN)}
        given[f"hada_t{i}"] = draw(RANK, RANK, K, K)
    first, second = (
        tucker(*(given[f"hada_{end.format(i)}"] for end in ("t{}", "w{}_a", "w{}_b"))) for i in (1, 2)
    )
    close(change(CONV, given), SCALE * first * second)


LOKR = {
    # form -> its tensors for a weight of 6 x 8: (3 x 2) (x) (2 x 4)
    "whole": {"lokr_w1": (3, 2), "lokr_w2": (2, 4)},
    "large factored": {"lokr_w1": (3, 2), "lokr_w2_a": (2, RANK), "lokr_w2_b": (RANK, 4)},
    "small factored": {"lokr_w1_a": (3, RANK), "lokr_w1_b": (RANK, 2), "lokr_w2": (2, 4)},
    "both factored": {
        "lokr_w1_a": (3, RANK),
        "lokr_w1_b": (RANK, 2),
        "lokr_w2_a": (2, RANK),
        "lokr_w2_b": (RANK, 4),
    },
}


def kronecker(small, large):
    (a, b), (c, d, *kernel) = small.shape, large.shape
    formula = np.zeros((a * c, b * d, *kernel))
    for o, i in itertools.product(range(a * c), range(b * d)):
        formula[o, i] = small[o // c, i // d] * large[o % c, i % d]
    return formula


@pytest.mark.parametrize("form", LOKR)
def test_lokr(form):
    given = {name: draw(*size) for name, size in LOKR[form].items()}
    whole = {
        i: given[f"lokr_w{i}"] if f"lokr_w{i}" in given else given[f"lokr_w{i}_a"] @ given[f"lokr_w{i}_b"]
        for i in (1, 2)
    }
    scale = 1 if form == "whole" else SCALE  # LyCORIS writes an alpha that it does not use
    close(change(LINEAR, given | {"alpha": ALPHA}), scale * kronecker(whole[1], whole[2]))


@pytest.mark.parametrize("form", ["whole", "factored", "tucker"])
def test_lokr_of_convolutions(form):
    small = draw(3, 2)
    if form == "whole":
        large = draw(2, 4, K, K)
        given = {"lokr_w2": large}
    elif form == "factored":
        given = {"lokr_w2_a": draw(2, RANK), "lokr_w2_b": draw(RANK, 4 * K * K)}
        large = (given["lokr_w2_a"] @ given["lokr_w2_b"]).reshape(2, 4, K, K)
    else:
        given = {
            "lokr_t2": draw(RANK, RANK, K, K),
            "lokr_w2_a": draw(RANK, 2),
            "lokr_w2_b": draw(RANK, 4),
        }
        large = tucker(given["lokr_t2"], given["lokr_w2_a"], given["lokr_w2_b"])
    scale = 1 if form == "whole" else SCALE
    close(change(CONV, given | {"lokr_w1": small, "alpha": ALPHA}), scale * kronecker(small, large))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_dora_brings_rows_or_columns_to_learned_lengths(shape, axis):
    base, given = draw(*shape), lora(shape)
    lengths = np.abs(draw(shape[axis])) + 0.5
    shaped = lengths.reshape([-1 if dim == axis else 1 for dim in range(len(shape))])
    changed = base + change(shape, given)
    formula = np.empty(shape)
    for index in range(shape[axis]):
        one = np.index_exp[index] if axis == 0 else np.index_exp[:, index]
        formula[one] = lengths[index] * changed[one] / np.sqrt((changed[one] ** 2).sum())
    close(base + change(shape, given | {"dora_scale": shaped}, base), formula)
    if axis == 0:  # PEFT: [out], and [1, out, 1, 1] of convolutions
        for peft in (lengths, lengths.reshape(1, -1, 1, 1)):
            close(base + change(shape, given | {"magnitude": peft}, base), formula)


def test_dora_of_lokr():
    base = draw(*LINEAR)
    given = {name: draw(*size) for name, size in LOKR["both factored"].items()}
    changed = base + change(LINEAR, given)
    lengths = np.abs(draw(1, IN)) + 0.5
    formula = lengths * changed / np.sqrt((changed**2).sum(0, keepdims=True))
    close(base + change(LINEAR, given | {"dora_scale": lengths}, base), formula)


def test_dora_leaves_a_row_of_zeros_finite():
    given = {name: np.zeros_like(value) for name, value in lora(LINEAR).items()}
    assert np.isfinite(
        change(LINEAR, given | {"dora_scale": np.ones((OUT, 1))}, np.zeros(LINEAR, np.float32))
    ).all()


@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_ia3_scales_outputs_or_inputs(shape):
    base, ones = draw(*shape), [1] * (len(shape) - 2)
    outputs = draw(OUT) if shape == LINEAR else draw(1, OUT, *ones)
    formula = np.stack([base[o] * outputs.flatten()[o] for o in range(OUT)])
    close(change(shape, {"weight": outputs, "on_input": False}, base), formula)
    inputs = draw(IN) if shape == LINEAR else draw(1, IN, *ones)
    formula = np.stack([base[:, i] * inputs.flatten()[i] for i in range(IN)], axis=1)
    close(change(shape, {"weight": inputs, "on_input": True}, base), formula)


def test_differences_of_weights_biases_and_norms():
    shapes = {"weight": torch.Size(CONV), "bias": torch.Size((OUT,))}
    given = {"diff": torch.randn(CONV), "diff_b": torch.randn(OUT)}
    patches = read_patches(given, shapes)
    assert torch.equal(patches["weight"].change(torch.zeros(CONV)), given["diff"])
    assert torch.equal(patches["bias"].change(torch.zeros(OUT)), given["diff_b"])
    norm = {"w_norm": torch.randn(OUT), "b_norm": torch.randn(OUT)}
    patches = read_patches(norm, {"weight": torch.Size((OUT,)), "bias": torch.Size((OUT,))})
    assert torch.equal(patches["weight"].change(torch.zeros(OUT)), norm["w_norm"])
    assert torch.equal(patches["bias"].change(torch.zeros(OUT)), norm["b_norm"])


def test_bias_of_peft_has_the_scale_of_its_weight():
    given = {name: torch.as_tensor(value) for name, value in lora(LINEAR).items()}
    bias = torch.randn(OUT)
    shapes = {"weight": torch.Size(LINEAR), "bias": torch.Size((OUT,))}
    patches = read_patches(given | {"up_bias": bias}, shapes)
    torch.testing.assert_close(patches["bias"].change(torch.zeros(OUT)), SCALE * bias)


def test_without_alpha_the_scale_is_one_or_the_given():
    given = lora(LINEAR)
    del given["alpha"]
    assert patch_of(LINEAR, given).scale == 1
    assert patch_of(LINEAR, given, default_scale=lambda rank: 10 / rank).scale == 10 / RANK


def test_matrices_stand_for_pointwise_convolutions_and_back():
    given = lora(POINT)
    flat = {
        name: value.squeeze() if isinstance(value, np.ndarray) else value for name, value in given.items()
    }
    assert np.array_equal(change(LINEAR, given), change(POINT, flat)[:, :, 0, 0])
    for shape, file in ((LINEAR, given), (POINT, flat)):
        down, up, _ = patch_of(shape, file).low_rank(torch.Size(shape))
        assert down.shape == (RANK, *shape[1:])
        assert up.shape == (OUT, RANK)


def test_only_a_lora_is_of_low_rank():
    given = lora(LINEAR) | {"dora_scale": np.ones((OUT, 1), np.float32)}
    assert patch_of(LINEAR, given).low_rank(torch.Size(LINEAR)) is None
    assert patch_of(LINEAR, {"diff": draw(*LINEAR)}).low_rank(torch.Size(LINEAR)) is None


def test_factors_may_be_of_half_precision():
    given = {name: torch.as_tensor(value).half() for name, value in lora(LINEAR).items()}
    change = read_patches(given, {"weight": torch.Size(LINEAR)})["weight"].change(torch.zeros(LINEAR).half())
    assert change.dtype == torch.float32
    torch.testing.assert_close(change, SCALE * given["up"].float() @ given["down"].float())


WRONG = {
    "half": {"up": (OUT, RANK)},
    "other half": {"down": (RANK, IN), "alpha": ()},
    "alpha alone": {"alpha": ()},
    "half of loha": {"hada_w1_a": (OUT, RANK), "hada_w1_b": (RANK, IN)},
    "one core of loha": {
        **{f"hada_w{i}_a": (RANK, OUT) for i in (1, 2)},
        **{f"hada_w{i}_b": (RANK, IN) for i in (1, 2)},
        "hada_t1": (RANK, RANK, 1, 1),
    },
    "half of lokr": {"lokr_w1": (3, 2)},
    "half of a factor of lokr": {"lokr_w1": (3, 2), "lokr_w2_a": (2, RANK)},
    "two forms": {"up": (OUT, RANK), "down": (RANK, IN), "diff": LINEAR},
    "ranks that differ": {"up": (OUT, RANK + 1), "down": (RANK, IN)},
    "rank 0": {"up": (OUT, 0), "down": (0, IN)},
    "too wide": {"up": (OUT, RANK), "down": (RANK, IN + 1)},
    "turned": {"up": (IN, RANK), "down": (RANK, OUT)},
    "as many elements": {"up": (OUT * 2, RANK), "down": (RANK, IN // 2)},
    "scalars": {"up": (), "down": ()},
    "lokr of another size": {"lokr_w1": (2, 2), "lokr_w2": (2, 4)},
    "dora without a change": {"dora_scale": (OUT, 1)},
    "dora of another size": {"up": (OUT, RANK), "down": (RANK, IN), "dora_scale": (OUT + 1, 1)},
    "magnitude of another size": {"up": (OUT, RANK), "down": (RANK, IN), "magnitude": (IN,)},
    "two alphas": {"up": (OUT, RANK), "down": (RANK, IN), "alpha": (2,)},
    "difference of another size": {"diff": (IN, OUT)},
    "a bias that is not there": {"diff_b": (OUT,)},
    "ia3 without its axis": {"weight": (OUT,)},
    "ia3 of another size": {"weight": (OUT + IN,), "on_input": ()},
}


@pytest.mark.parametrize("name", WRONG)
def test_half_of_a_form_or_another_shape_is_refused(name):
    with pytest.raises(ValueError, match=r"missing|fit|expected|does not have|not one number"):
        read_patches(
            {key: torch.ones(shape) for key, shape in WRONG[name].items()}, {"weight": torch.Size(LINEAR)}
        )


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alpha_is_a_number(alpha):
    with pytest.raises(ValueError, match="number"):
        patch_of(LINEAR, lora(LINEAR) | {"alpha": alpha})


def test_integers_are_no_factors():
    given = {"up": torch.ones(OUT, RANK, dtype=torch.int8), "down": torch.ones(RANK, IN)}
    with pytest.raises(ValueError, match="int8"):
        read_patches(given, {"weight": torch.Size(LINEAR)})
