"""Provenance of images: signed C2PA manifests (Content Credentials), and IPTC's fields in XMP.

A manifest in an image file says what made the image and from what. Hashes and a signature bind it to the
bytes of the file: C2PA Technical Specification 2.2, https://spec.c2pa.org. The library `c2pa-python` writes
and reads it, an optional extra, `limner[provenance]`. Nothing here needs torch, and nothing uses the network
but a time-stamp authority whose URL was given.
"""

from .ingredients import Ingredient, ingredients_of
from .keys import Signer, development_signer, load_anchors, load_signer
from .manifests import (
    SOFT_BINDING,
    Manifest,
    has_manifest,
    read_manifest,
    sign,
)
from .signing import UNSTAMPED, SignedFile, Signing, signed_encoding
from .xmp import COMPOSED, COMPOSITE, GENERATED, iptc_packet

__all__ = [
    "COMPOSED",
    "COMPOSITE",
    "GENERATED",
    "SOFT_BINDING",
    "UNSTAMPED",
    "Ingredient",
    "Manifest",
    "SignedFile",
    "Signer",
    "Signing",
    "development_signer",
    "has_manifest",
    "ingredients_of",
    "iptc_packet",
    "load_anchors",
    "load_signer",
    "read_manifest",
    "sign",
    "signed_encoding",
]
