"""`--sign` of `limner generate` and `limner batch`, and `limner verify`."""

import json
import socket
import sys
from pathlib import Path

import pytest

pytest.importorskip("c2pa", reason="limner[provenance] is not installed")

from PIL import Image

from limner.catalogue.shipped import SHIPPED
from limner.images.metadata import read_texts
from limner.safety import provenance
from limner.safety.provenance import UNSTAMPED

DRAWN = ("--width", 128, "--height", 128, "--steps", 2, "--exact")
SIZE = ("--width", 64, "--height", 64, "--steps", 2)

shipped = pytest.mark.skipif(
    not (SHIPPED["picturebook"] / "model_index.json").is_file(), reason="the shipped model is not built yet"
)


@pytest.fixture(autouse=True)
def _own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("SIGNING_CERTIFICATE", "SIGNING_KEY", "TIMESTAMP_URL", "TRUST_ANCHORS", "WATERMARK_KEY"):
        monkeypatch.delenv(f"LIMNER_{name}", raising=False)


def flip(path: str, position: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[position] ^= 1
    Path(path).write_bytes(data)


@shipped
def test_a_signed_image_is_verified_and_one_flipped_byte_is_found(limner, tmp_path):
    done = limner("generate", "a house", "--seed", 3, *DRAWN, "--sign", "--watermark", "--out", "signed.png")
    assert done.code == 0
    assert done.err.count("Limner development CA, not for trust") == 1
    keys = tmp_path / "data" / "limner" / "signing"

    found = limner("verify", "signed.png", "--json")
    manifest = json.loads(found.out)["manifest"]
    assert (found.code, found.err, manifest["state"]) == (0, "", "trusted")
    seen = json.loads(limner("detect", "signed.png", "--no-scales", "--json").out)
    assert seen["manifest"] == manifest
    assert seen["watermark"]["id"] == manifest["watermark"] == seen["record"]["watermark"]["id"][:8]
    rows = limner("detect", "signed.png", "--no-scales").out.splitlines()
    assert "manifest\tvalid" in rows
    assert "signed by\tLimner development signer (Limner development CA, not for trust)" in rows
    assert "prompt\ta house" in rows
    assert "a house" in limner("show", "signed.png").out

    edited = limner(
        "generate", "a red house", "--image", "signed.png", "--steps", 2, "--sign", "--out", "b.webp"
    )
    assert (edited.code, edited.err) == (0, "")
    rows = limner("verify", "b.webp").out.splitlines()
    assert "source type\tcompositeWithTrainedAlgorithmicMedia" in rows
    signed_input = "its manifest is trusted, signed by Limner development signer"
    assert f"made from\timage (parentOf): {signed_input}" in rows

    (keys / "development-ca.pem").rename(tmp_path / "ca.pem")
    unknown = limner("verify", "signed.png")
    assert (unknown.code, "no trust anchor vouches for the signer" in unknown.out) == (1, True)
    assert limner("verify", "signed.png", "--anchors", "ca.pem").code == 0

    flip("signed.png", Path("signed.png").read_bytes().index(b"IDAT") + 100)
    changed = limner("verify", "signed.png", "--anchors", "ca.pem")
    assert (changed.code, "manifest\tinvalid" in changed.out) == (1, True)


def test_a_batch_reads_the_input_images_of_a_line_once_to_sign_its_images(limner, tiny, monkeypatch):
    read = []
    ingredients_of = provenance.ingredients_of
    monkeypatch.setattr(
        provenance,
        "ingredients_of",
        lambda request, *rest: read.append(request) or ingredients_of(request, *rest),
    )
    Path("prompts.txt").write_text("a house\na boat\n")
    Image.new("RGB", (64, 64)).save("input.bmp")
    asked = ("--model", tiny, *SIZE, "--image", "input.bmp", "-n", 2, "--sign")
    paths = limner("batch", "prompts.txt", *asked).out.splitlines()
    assert len(paths) == 4
    for path in paths:
        found = json.loads(limner("verify", path, "--json").out)["manifest"]
        assert (found["state"], found["actions"]) == ("trusted", ["c2pa.opened", "c2pa.edited"])
    assert sorted(request.prompt for request in read) == ["a boat", "a house"]


def test_the_images_of_a_batch_and_of_a_sheet_are_signed(limner, tiny):
    Path("prompts.txt").write_text("a house\n")
    Image.new("RGB", (64, 64)).save("input.bmp")
    done = limner("batch", "prompts.txt", "--model", tiny, *SIZE, "--image", "input.bmp", "--sign-prompt")
    [path] = done.out.splitlines()
    found = json.loads(limner("verify", path, "--json").out)["manifest"]
    assert (found["state"], found["actions"]) == ("trusted", ["c2pa.opened", "c2pa.edited"])
    data = Path(path).read_bytes()
    assert b"description" in data[: data.index(b"IDAT")]

    drawn = limner("generate", "a", "-n", 2, "--grid", "--model", tiny, *SIZE, "--sign")
    paths = drawn.out.splitlines()
    assert len(paths) == 3
    assert limner("verify", *paths).code == 0
    sheet = json.loads(limner("verify", paths[2], "--json").out)["manifest"]
    assert (sheet["actions"], sheet["source_types"]) == (
        ["c2pa.created", "c2pa.placed"],
        ["compositeSynthetic"],
    )
    assert [(one["title"], one["role"], one["state"]) for one in sheet["ingredients"]] == [
        ("image 1", "componentOf", "trusted"),
        ("image 2", "componentOf", "trusted"),
    ]
    assert all(b"c2pa" in Path(one).read_bytes() for one in paths)
    assert read_texts(paths[0]).keys() == {"parameters", "limner"}


def test_what_is_not_signed_or_no_image(limner, tiny, monkeypatch):
    assert limner("generate", "a", "--model", tiny, *SIZE, "--out", "plain.png").code == 0
    plain = limner("verify", "plain.png")
    assert (plain.code, plain.out) == (1, "file\tplain.png\nmanifest\tnone\n")
    Path("text.png").write_text("no image")
    refused = limner("verify", "text.png", "plain.png", "--json")
    assert (refused.code, "text.png cannot be read as an image" in refused.err) == (2, True)
    assert json.loads(refused.out) == {"file": "plain.png", "manifest": None, "replay": None}
    assert limner("verify", "nothing.png").code == 2
    assert "text.png holds no certificate" in limner("verify", "plain.png", "--anchors", "text.png").err
    assert limner("generate", "a", "--model", tiny, *SIZE, "--out", "signed.png", "--sign").code == 0
    data = Path("signed.png").read_bytes()
    flip("signed.png", data.index(b"Limner") + 1)  # in the manifest, which has a CRC of its own in a PNG
    assert (limner("verify", "signed.png").code, limner("verify", "plain.png").code) == (1, 1)


def test_settings_and_a_missing_extra(limner, tiny, monkeypatch):
    monkeypatch.setenv("LIMNER_SIGNING_KEY", "key.pem")
    refused = limner("generate", "a", "--model", tiny, "--sign")
    assert refused.code == 2
    assert "LIMNER_SIGNING_KEY is set without LIMNER_SIGNING_CERTIFICATE" in refused.err
    monkeypatch.setenv("LIMNER_SIGNING_CERTIFICATE", "chain.pem")
    assert "the certificate in chain.pem cannot be read" in limner("generate", "a", "--sign").err
    monkeypatch.delenv("LIMNER_SIGNING_KEY")
    monkeypatch.delenv("LIMNER_SIGNING_CERTIFICATE")
    monkeypatch.setenv("LIMNER_TIMESTAMP_URL", "nowhere")
    assert "expected an http or https URL" in limner("generate", "a", "--sign").err
    monkeypatch.delenv("LIMNER_TIMESTAMP_URL")
    assert limner("generate", "a", "--model", tiny, *SIZE, "--out", "signed.png", "--sign").code == 0
    monkeypatch.setitem(sys.modules, "c2pa", None)
    refused = limner("verify", "signed.png")
    assert (refused.code, 'pip install "limner[provenance]"' in refused.err) == (2, True)
    refused = limner("generate", "a", "--model", tiny, *SIZE, "--out", "other.png", "--sign")
    assert (refused.code, Path("other.png").exists()) == (2, False)
    assert "signing needs c2pa-python" in refused.err
    Image.new("RGB", (128, 128)).save("plain.png")
    seen = limner("detect", "signed.png", "--no-scales")
    assert "has a manifest; reading a manifest needs c2pa-python" in seen.err


def test_a_plot_is_signed_with_its_images_as_ingredients(limner, tiny):
    asked = ("--model", tiny, *SIZE, "--x", "seed=1,2", "--y", "guidance_scale=2,3", "--sign")
    done = limner("grid", "a house", *asked, "--keep", "--out", "plot.webp")
    assert done.code == 0, done.err
    *kept, plot = done.out.splitlines()
    assert len(kept) == 4
    assert limner("verify", *kept, plot).code == 0
    found = json.loads(limner("verify", plot, "--json").out)["manifest"]
    assert found["source_types"] == ["compositeSynthetic"]
    assert [one["state"] for one in found["ingredients"]] == ["trusted"] * 4


def test_an_authority_that_does_not_answer_loses_no_image(limner, tiny, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("LIMNER_TIMESTAMP_URL", f"http://127.0.0.1:{port}/")
    done = limner("generate", "a", "-n", 2, "--model", tiny, *SIZE, "--sign")
    assert done.code == 0
    assert done.err.count("signed without a time stamp") == 1
    first, second = done.out.splitlines()
    assert limner("verify", first, second).code == 0
    for path in (first, second):
        record = json.loads(limner("detect", path, "--no-scales", "--json").out)["record"]
        assert UNSTAMPED in record["warnings"]
