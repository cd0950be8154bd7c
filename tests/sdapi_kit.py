"""What the tests of AUTOMATIC1111's API share: networks that bodies may name."""

from limner.server.sdapi.errors import Refusal


class Networks:
    """Knows one control network, canny, and one IP-Adapter."""

    def control(self, name: str) -> str:
        if "canny" not in name:
            raise Refusal("no such control network", status=422)
        return "controlnet:canny"

    def image_prompt(self, name: str) -> str:
        return "ip_adapter:face"
