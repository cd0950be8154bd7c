"""Addresses of finished images, for `response_format` "url": signed, and valid for some time.

Who follows such an address sends no key, so the address itself says that it was given by this service: it
holds the image's id, its format, when it ends, and a signature of these.
"""

import hmac
import re
import time
from dataclasses import dataclass
from urllib.parse import urlencode

from limner.service.secret import derived

VALID_SECONDS = 24 * 3600
PATH = "/v1/images/files"

_NAME = re.compile(r"([A-Za-z0-9_-]{1,128})\.(png|jpeg|webp)")


@dataclass(frozen=True)
class Link:
    """The contents of an address.

    Attributes:
        image_id: The image.
        format: "png", "jpeg" or "webp".
        compression: Quality of the file, from 0 to 100.
        expires: End of its validity, in seconds since the epoch.
    """

    image_id: str
    format: str
    compression: int
    expires: int

    def url(self, base: str, key: bytes) -> str:
        """The address.

        Args:
            base: Address of the service, such as "http://localhost:8188".
            key: The service's signing key.
        """
        signature = self._signature(key)
        query = urlencode({"compression": self.compression, "expires": self.expires, "signature": signature})
        return f"{base}{PATH}/{self.image_id}.{self.format}?{query}"

    def is_valid(self, signature: str, key: bytes) -> bool:
        """Whether this service has given the address, and it has not ended."""
        expected = self._signature(key).encode()
        return (
            hmac.compare_digest(expected, signature.encode("utf-8", "surrogatepass"))
            and time.time() < self.expires
        )

    def _signature(self, key: bytes) -> str:
        said = f"{self.image_id} {self.format} {self.compression} {self.expires}"
        return hmac.digest(derived(key, "image links"), said.encode(), "sha256").hex()


def new_link(image_id: str, format: str, compression: int) -> Link:
    """An address of an image that is valid from now."""
    return Link(image_id, format, compression, int(time.time()) + VALID_SECONDS)


def read_link(name: str, compression: int, expires: int) -> Link | None:
    """The contents of the end of an address; None if it is not the name of a file."""
    match = _NAME.fullmatch(name)
    return match and Link(match[1], match[2], compression, expires)
