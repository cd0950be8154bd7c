"""Keys that manifests are signed with: a certificate chain and its private key, or a development CA's."""

import datetime
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from limner.errors import InvalidRequest, OutputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

INSTALL = 'pip install "limner[provenance]"'
DEVELOPMENT_CA = "Limner development CA, not for trust"
_DEVELOPMENT_SIGNER = "Limner development signer"
_CHAIN_FILE, _KEY_FILE, _CA_FILE = "chain.pem", "key.pem", "development-ca.pem"
_DAY = datetime.timedelta(days=1)
_VALID = 3650 * _DAY  # without a time stamp, a signature is valid only as long as its certificate


@dataclass(frozen=True)
class Signer:
    """What manifests are signed with.

    Attributes:
        algorithm: Name in C2PA: es256, es384, es512, ps256 or ed25519.
        chain: Certificates in PEM, the signer's own first.
        key: Private key in PEM (PKCS #8).
        name: Common name of the signer.
        timestamp_url: URL of a time-stamp authority (RFC 3161) that is asked for each signature; None: none.
    """

    algorithm: str
    chain: bytes
    key: bytes = field(repr=False)
    name: str = ""
    timestamp_url: str | None = None

    @classmethod
    def load(cls, certificate: Path, key: Path, timestamp_url: str | None = None) -> Self:
        """Read a certificate chain, the signer's own certificate first, and its private key from PEM files.

        Raises:
            InvalidRequest: A file cannot be read, the two do not belong together, the certificate is not
                valid today, or limner[provenance] is not installed.
        """
        try:
            from cryptography import x509
            from cryptography.hazmat.primitives import serialization
        except ImportError:
            raise missing("signing") from None
        chain, private = _read(certificate, "certificate"), _read(key, "private key")
        try:
            [own, *_] = x509.load_pem_x509_certificates(chain)
        except ValueError as error:
            raise InvalidRequest(
                f"{certificate} holds no certificate in PEM: {error}",
                hint="give the signer's own certificate first, then those that signed it",
            ) from None
        try:
            loaded = serialization.load_pem_private_key(private, None)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(
                f"{key} holds no private key in PEM that can be read: {error}",
                hint="give an unencrypted key that only you can read (chmod 600)",
            ) from None
        if own.public_key() != loaded.public_key():
            raise InvalidRequest(
                f"the private key in {key} is not that of the first certificate in {certificate}"
            )
        now = datetime.datetime.now(datetime.UTC)
        if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
            raise InvalidRequest(
                f"the certificate in {certificate} is valid from {own.not_valid_before_utc:%Y-%m-%d} to "
                f"{own.not_valid_after_utc:%Y-%m-%d}, and not today",
                hint="give one that is valid",
            )
        pem = loaded.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        names = own.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        name = str(names[0].value) if names else own.subject.rfc4514_string()
        return cls(_algorithm(loaded, key), chain, pem, name, timestamp_url)


def development_signer(folder: Path, timestamp_url: str | None = None) -> Signer:
    """A signer of this machine's own, for trying things out, made on first use.

    A CA named "Limner development CA, not for trust" signs its certificate, and the key of the CA is thrown
    away. Only who has the folder's `development-ca.pem` can check signatures; they prove nothing to others.

    Args:
        folder: Where the keys are, or are made: readable by the user alone.

    Raises:
        InvalidRequest: The files cannot be read, or limner[provenance] is not installed.
        OutputError: The folder cannot be made.
    """
    if not folder.is_dir():
        _make(folder)
    return Signer.load(folder / _CHAIN_FILE, folder / _KEY_FILE, timestamp_url)


def load_signer(
    certificate: Path | None, key: Path | None, timestamp_url: str | None, development_keys: Path
) -> Signer:
    """The signer of a certificate and its key; without them, the development CA's.

    Args:
        development_keys: Folder of the development CA, whose keys are made on first use.

    Raises:
        InvalidRequest: As `Signer.load` and `development_signer`, and if c2pa-python is not installed.
        OutputError: As `development_signer`.
    """
    c2pa_library("signing")  # an error before anything is drawn
    if certificate is not None and key is not None:
        return Signer.load(certificate, key, timestamp_url)
    return development_signer(development_keys, timestamp_url)


def load_anchors(files: Iterable[Path], development_keys: Path) -> bytes:
    """The certificates that vouch for signers, in PEM: of these files, else of the development CA.

    Raises:
        InvalidRequest: A file cannot be read, or holds no certificate.
    """
    given = tuple(files)
    if not given:
        return development_anchor(development_keys)
    anchors = b""
    for file in given:
        data = _read(file, "trust anchor")
        if b"BEGIN CERTIFICATE" not in data:
            raise InvalidRequest(f"{file} holds no certificate in PEM", hint="give the certificate of a CA")
        anchors += data + b"\n"
    return anchors


def development_anchor(folder: Path) -> bytes:
    """The certificate of the development CA in PEM; empty where none was made."""
    try:
        return (folder / _CA_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""


def c2pa_library(what: str) -> Any:
    """The module `c2pa`.

    Args:
        what: What needs it, for the error.

    Raises:
        InvalidRequest: It is not installed.
    """
    try:
        import c2pa  # type: ignore[import-untyped]
    except ImportError:
        raise missing(what) from None
    return c2pa


def missing(what: str) -> InvalidRequest:
    """The error where limner[provenance] is not installed."""
    return InvalidRequest(f"{what} needs c2pa-python, which is not installed", hint=INSTALL)


def _make(folder: Path) -> None:
    """Make keys in a new folder, whole or not at all."""
    files = _development_files()
    made = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    try:
        made.mkdir(parents=True, mode=0o700)
        for name, data in files.items():
            with os.fdopen(os.open(made / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    except OSError as error:
        raise OutputError(f"the keys in {folder} cannot be made: {error.strerror}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _development_files() -> dict[str, bytes]:
    """The files of a new development CA: its certificate, and the chain and key of a signer."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID
    except ImportError:
        raise missing("signing") from None

    def named(common: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(x509.NameOID.COMMON_NAME, common),
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, DEVELOPMENT_CA),
            ]
        )

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, *, is_ca: bool) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        usage = dict.fromkeys(_KEY_USAGES, False)
        usage |= {"key_cert_sign": True, "crl_sign": True} if is_ca else {"digital_signature": True}
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(DEVELOPMENT_CA))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)  # clocks differ
            .not_valid_after(now + _VALID)
            .add_extension(x509.BasicConstraints(is_ca, 0 if is_ca else None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = certificate(DEVELOPMENT_CA, ca_key, is_ca=True).sign(ca_key, hashes.SHA256())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])  # one that C2PA accepts
    own = (
        certificate(_DEVELOPMENT_SIGNER, key, is_ca=False)
        .add_extension(purposes, critical=False)
        .add_extension(identifier, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    anchor = ca.public_bytes(pem)
    return {_CA_FILE: anchor, _CHAIN_FILE: own.public_bytes(pem) + anchor, _KEY_FILE: private}


_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _algorithm(key: "PrivateKeyTypes", path: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise InvalidRequest(
        f"the private key in {path} is of a kind that C2PA does not sign with",
        hint="use a key on P-256, P-384 or P-521, an Ed25519 key or an RSA key",
    )


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"the {what} in {path} cannot be read: {error.strerror}") from None
