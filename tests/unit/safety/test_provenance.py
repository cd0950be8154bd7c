"""Signed manifests: what they say, what breaks them, and the keys."""

import datetime
import io
import socket
import stat
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("c2pa", reason="limner[provenance] is not installed")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from limner.errors import InvalidRequest, OutputError
from limner.images.assets import Assets
from limner.images.metadata import read_metadata, read_record, read_texts
from limner.images.picture import Picture, encode
from limner.images.record import Record, Watermark
from limner.request import GenerationRequest
from limner.safety.provenance import (
    COMPOSITE,
    GENERATED,
    UNSTAMPED,
    Ingredient,
    Signer,
    Signing,
    development_signer,
    has_manifest,
    ingredients_of,
    read_manifest,
    sign,
    signed_encoding,
    signing,
)
from limner.safety.provenance.keys import DEVELOPMENT_CA, development_anchor

PEM = serialization.Encoding.PEM
FORMATS = ["png", "jpeg", "webp", "avif"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "limner" / "signing"


@pytest.fixture(scope="module")
def signer(folder: Path) -> Signer:
    return development_signer(folder)


@pytest.fixture(scope="module")
def anchors(folder: Path, signer: Signer) -> bytes:
    return development_anchor(folder)


@pytest.fixture(scope="module")
def picture() -> Picture:
    request = GenerationRequest(
        prompt="a häuschen",
        seed=3,
        steps=2,
        sampler="euler",
        sigma_schedule="karras",
        guidance_scale=5,
        width=64,
        height=64,
    )
    record = Record(
        request=request,
        model={"name": "m", "sha256": "0" * 64},
        environment={"limner": "0"},
        watermark=Watermark(id="0123456789abcdef", bits=32),
    )
    return Picture(Image.linear_gradient("L").resize((64, 64)).convert("RGB"), record)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("format", FORMATS)
def test_a_signed_image_says_what_made_it_and_keeps_its_record(format, picture, signer, anchors):
    data = signed_encoding(signer)(picture, format)
    manifest = read_manifest(data, anchors)
    assert (manifest.state, manifest.failures) == ("trusted", ())
    assert manifest.generator.startswith("Limner ")
    assert (manifest.signer, manifest.issuer) == ("Limner development signer", DEVELOPMENT_CA)
    assert manifest.actions == ("c2pa.created", "c2pa.watermarked.bound")
    assert manifest.source_types == ("trainedAlgorithmicMedia",)
    assert (manifest.watermark, manifest.ingredients, manifest.signed) == ("01234567", (), "")

    file = io.BytesIO(data)
    assert read_record(file) == picture.record
    assert read_texts(file)["parameters"] == picture.record.infotext()
    assert GENERATED in read_metadata(file).texts.xmp
    with Image.open(file) as opened, Image.open(io.BytesIO(encode(picture, format))) as unsigned:
        assert opened.tobytes() == unsigned.tobytes()
    assert read_manifest(data).state == "untrusted"
    assert read_manifest(encode(picture, format), anchors) is None
    assert [has_manifest(one) for one in (data, encode(picture, format))] == [True, False]


@pytest.mark.parametrize("format", FORMATS)
def test_one_flipped_byte_makes_an_image_invalid(format, picture, signer, anchors):
    data = signed_encoding(signer)(picture, format)
    padding = data.rindex(b"\x63pad\x59") + 100
    manifest = range(data.index(b"jumb") - 60, padding + 1000)  # where its bytes are, about
    outside = [position for position in range(0, len(data), 31) if position not in manifest]
    assert len(outside) > 10
    for position in outside:
        found = read_manifest(flipped(data, position), anchors)
        assert found is None or found.state == "invalid", position
    for inside in (b"Limner\x00", b"c2pa.created", b"trainedAlgorithmicMedia", b"01234567"):
        at = data.rindex(inside.rstrip(b"\0"))
        assert read_manifest(flipped(data, at), anchors).state == "invalid", inside
    assert read_manifest(data, anchors).state == "trusted"
    assert "padding" in read_manifest(flipped(data, padding), anchors).failures[-1]


def test_input_images_and_their_manifests_are_kept(picture, signer, anchors):
    plain = encode(picture, "png")
    first = sign(plain, signer)
    broken = flipped(first, first.index(b"IDAT") + 20)
    bitmap = encode(Image.new("L", (8, 8)), "bmp")  # a format that holds no manifest
    inputs = [
        Ingredient(first, "parentOf", "image"),
        Ingredient(bitmap, "inputTo", "mask"),
        Ingredient(broken, "inputTo", "control image"),
    ]
    data = signed_encoding(signer, ingredients=inputs, anchors=anchors)(picture, "png")
    manifest = read_manifest(data, anchors)
    assert manifest.state == "trusted"
    assert manifest.actions == ("c2pa.opened", "c2pa.edited", "c2pa.watermarked.bound")
    assert manifest.source_types == ("compositeWithTrainedAlgorithmicMedia",)
    assert [(one.title, one.role, one.state, one.signer) for one in manifest.ingredients] == [
        ("image", "parentOf", "trusted", "Limner development signer"),
        ("mask", "inputTo", None, ""),
        ("control image", "inputTo", "invalid", "Limner development signer"),
    ]
    assert COMPOSITE in read_metadata(io.BytesIO(data)).texts.xmp
    unknown = read_manifest(sign(plain, signer, ingredients=inputs[:1]), anchors)
    assert unknown.ingredients[0].state == "untrusted"

    control = [replace(inputs[0], role="inputTo", title="control image")]
    drawn = read_manifest(sign(plain, signer, ingredients=control), anchors)
    assert (drawn.actions, drawn.ingredients[0].role) == (("c2pa.created",), "inputTo")


def test_the_input_images_of_a_request(tmp_path):
    image, mask = tmp_path / "private name.png", tmp_path / "mask.png"
    image.write_bytes(b"image")
    mask.write_bytes(b"mask")
    url = "data:image/png;base64,aW1hZ2U="  # "image"
    request = GenerationRequest(
        prompt="a",
        image=url,
        mask=str(mask),
        controls=[{"model": "m", "image": str(image)}, {"model": "n", "image": str(image)}],
    )
    found = ingredients_of(request)
    assert [(one.data, one.role, one.title) for one in found] == [
        (b"image", "parentOf", "image"),
        (b"mask", "inputTo", "mask"),
        (b"image", "inputTo", "control image"),
    ]
    assert ingredients_of(GenerationRequest(prompt="a")) == ()
    store = Assets(store=tmp_path / "store", allow_paths=False)
    [stored] = ingredients_of(GenerationRequest(prompt="a", image=store.put(b"image")), store)
    assert stored.data == b"image"
    with pytest.raises(InvalidRequest, match="paths are not opened here"):
        ingredients_of(request, store)
    image.unlink()
    with pytest.raises(InvalidRequest, match="cannot be opened: No such file"):
        ingredients_of(request)


def test_the_prompt_is_in_the_manifest_only_where_it_is_asked_for(picture, signer, anchors):
    prompt = picture.record.request.prompt.encode()
    bare = encode(Image.new("RGB", (8, 8)), "png")
    assert prompt not in sign(bare, signer)
    said = sign(bare, signer, prompt=picture.record.request.prompt)
    assert prompt in said
    assert read_manifest(said, anchors).state == "trusted"
    before, after = (
        signed_encoding(signer, with_prompt=asked)(picture, "png").count(prompt) for asked in (False, True)
    )
    assert after == before + 1  # the record says it in any case


def test_an_image_signed_again_has_the_last_manifest(picture, signer, anchors):
    once = sign(encode(picture, "png"), signer)
    again = read_manifest(sign(once, signer, watermark=picture.record.watermark), anchors)
    assert (again.state, again.watermark) == ("trusted", "01234567")


def test_what_cannot_be_signed_is_said(picture, signer):
    with pytest.raises(OutputError, match="a file of this format holds no manifest"):
        sign(encode(Image.new("RGB", (8, 8)), "bmp"), signer)
    with pytest.raises(OutputError, match="the image cannot be signed"):
        sign(encode(picture, "png")[:200], replace(signer, chain=b"nothing"))
    with pytest.raises(OutputError, match="the image cannot be signed") as caught:
        sign(encode(picture, "png"), replace(signer, timestamp_url="http://127.0.0.1:1/"))
    assert "a time-stamp authority that is set must answer" in caught.value.hint


def test_signing_from_several_threads(picture, signer, anchors):
    data = encode(picture, "jpeg")
    with ThreadPoolExecutor(4) as pool:
        signed = list(pool.map(lambda _: sign(data, signer), range(16)))
    assert {read_manifest(one, anchors).state for one in signed} == {"trusted"}


def test_the_development_ca_is_made_once_and_for_the_user_alone(tmp_path):
    folder = tmp_path / "data" / "signing"
    assert development_anchor(folder) == b""
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: development_signer(folder), range(4)))
    assert len({one.chain for one in made}) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["signing"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    [anchor] = x509.load_pem_x509_certificates(development_anchor(folder))
    assert DEVELOPMENT_CA in anchor.subject.rfc4514_string().replace("\\", "")
    assert "PRIVATE" not in repr(made[0])  # keys do not get into logs
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        development_signer(tmp_path / "file" / "signing")


def written(
    folder: Path, key: object, *, days: int = 10, usage: x509.ObjectIdentifier | None = None
) -> tuple[Path, Path, bytes]:
    """Files of a certificate and of its key, and the certificate of the CA that signed it."""
    now = datetime.datetime.now(datetime.UTC)
    root = ec.generate_private_key(ec.SECP256R1())

    def certificate(name: str, public: object, is_ca: bool) -> x509.CertificateBuilder:
        names = [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
        names.append(x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Tests"))
        issuer = [x509.NameAttribute(x509.NameOID.COMMON_NAME, "root"), names[1]]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name(names))
            .issuer_name(x509.Name(issuer))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=20))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(
                x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    anchor = certificate("root", root.public_key(), True).sign(root, hashes.SHA256())
    own = certificate("signer of tests", key.public_key(), False)
    own = own.add_extension(
        x509.ExtendedKeyUsage([usage or ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
    )
    own = own.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False
    )
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(own.sign(root, hashes.SHA256()).public_bytes(PEM))
    private.write_bytes(
        key.private_bytes(PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        if not isinstance(key, ed25519.Ed25519PrivateKey)
        else key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private, anchor.public_bytes(PEM)


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (lambda: ec.generate_private_key(ec.SECP384R1()), "es384"),
        (ed25519.Ed25519PrivateKey.generate, "ed25519"),
        (lambda: rsa.generate_private_key(65537, 2048), "ps256"),
    ],
)
def test_own_keys_of_every_kind_sign(make, algorithm, picture, tmp_path):
    chain, key, anchor = written(tmp_path, make())
    signer = Signer.load(chain, key)
    assert (signer.algorithm, signer.name) == (algorithm, "signer of tests")
    manifest = read_manifest(sign(encode(picture, "png"), signer), anchor)
    assert (manifest.state, manifest.signer, manifest.issuer) == ("trusted", "signer of tests", "Tests")


def test_keys_that_cannot_be_used_are_refused(tmp_path, picture):
    chain, key, _ = written(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(InvalidRequest, match="the certificate in nothing cannot be read"):
        Signer.load(Path("nothing"), key)
    with pytest.raises(InvalidRequest, match="holds no certificate in PEM"):
        Signer.load(key, key)
    with pytest.raises(InvalidRequest, match="holds no private key in PEM"):
        Signer.load(chain, chain)
    other = tmp_path / "other"
    other.mkdir()
    _, other_key, _ = written(other, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(InvalidRequest, match="is not that of the first certificate"):
        Signer.load(chain, other_key)
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    other_key.write_bytes(
        loaded.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
        )
    )
    with pytest.raises(InvalidRequest, match="Password was not given"):
        Signer.load(chain, other_key)
    expired, key, _ = written(other, loaded, days=-1)
    with pytest.raises(InvalidRequest, match=r"is valid from .* and not today"):
        Signer.load(expired, key)
    strange, key, _ = written(other, dsa.generate_private_key(2048))
    with pytest.raises(InvalidRequest, match="of a kind that C2PA does not sign with"):
        Signer.load(strange, key)
    unfit, key, _ = written(other, loaded, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    with pytest.raises(OutputError, match="the image cannot be signed"):
        sign(encode(picture, "png"), Signer.load(unfit, key))


def test_without_the_extra_the_error_says_what_to_install(picture, signer, tmp_path, monkeypatch):
    data = encode(picture, "png")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(InvalidRequest, match="signing needs c2pa-python") as caught:
        sign(data, signer)
    assert caught.value.hint == 'pip install "limner[provenance]"'
    with pytest.raises(InvalidRequest, match="reading a manifest needs c2pa-python"):
        read_manifest(data)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(InvalidRequest, match="signing needs"):
        development_signer(tmp_path / "signing")


def test_an_authority_that_fails_is_asked_again_after_a_minute_alone(picture, signer, anchors, monkeypatch):
    asked, now = [], [1000.0]

    def failing(data, by, **more):
        if by.timestamp_url is not None:
            asked.append(by.timestamp_url)
            raise OutputError("no time stamp")
        return sign(data, by, **more)

    monkeypatch.setattr(signing, "sign", failing)
    monkeypatch.setattr(signing.time, "monotonic", lambda: now[0])
    made = Signing(replace(signer, timestamp_url="http://stamps"), anchors)
    for seconds, number in ((0, 1), (59, 1), (2, 2)):
        now[0] += seconds
        file = made.encode(picture, "png")
        assert (file.warnings, len(asked)) == ((UNSTAMPED,), number)
        assert read_record(io.BytesIO(file.data)).warnings == (UNSTAMPED,)
        assert read_manifest(file.data, anchors).state == "trusted"
    assert picture.record.warnings == ()


def test_input_images_that_are_gone_are_named(signer, anchors, tmp_path):
    request = GenerationRequest(prompt="a", image=f"sha256:{'0' * 64}")
    with pytest.raises(InvalidRequest, match="no file with this content is known"):
        ingredients_of(request, Assets(store=tmp_path))
    [one] = ingredients_of(request, Assets(store=tmp_path), gone=True)
    manifest = read_manifest(
        sign(encode(Image.new("RGB", (8, 8)), "png"), signer, ingredients=[one]), anchors
    )
    assert manifest.source_types == ("compositeWithTrainedAlgorithmicMedia",)
    assert manifest.ingredients[0].title == "image, not stored any more"


@pytest.mark.parametrize("length", [0, 50, 2000])
def test_an_input_whose_manifest_is_broken_beyond_reading_is_named(picture, signer, anchors, length):
    given = sign(encode(picture, "png"), signer)
    begin = given.index(b"caBX")
    size = int.from_bytes(given[begin - 4 : begin])
    chunk = b"caBX" + given[begin + 4 : begin + 4 + size][:length]
    checked = len(chunk[4:]).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    broken = Ingredient(given[: begin - 4] + checked + given[begin + 8 + size :], "parentOf", "image")
    manifest = read_manifest(sign(encode(picture, "png"), signer, ingredients=[broken]), anchors)
    assert (manifest.state, manifest.actions) == ("trusted", ("c2pa.opened", "c2pa.edited"))
    [named] = manifest.ingredients
    assert (named.role, named.state) == ("parentOf", None)
