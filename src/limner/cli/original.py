"""An image that is drawn again from its record: for `generate --from` and `verify --replay`."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from limner.cli.options import ModelOptions
from limner.errors import InvalidRequest

from . import terminal

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.images.assets import Assets
    from limner.images.metadata import OpenedImage
    from limner.images.record import Record
    from limner.request import GenerationRequest


@dataclass(frozen=True)
class Original:
    """An image that is drawn again.

    Attributes:
        path: Path of the image.
        record: Its record.
        pixels: Its pixels, as RGB.
        format: Format of the file, in Pillow's spelling.
    """

    path: Path
    record: "Record"
    pixels: "Image"
    format: str

    @classmethod
    def of(cls, path: Path, opened: "OpenedImage") -> "Original | None":
        """The image in a file; None if it has no record of Limner.

        Raises:
            InvalidPicture: Its record is broken.
            InvalidRequest: The image is a sheet of several.
        """
        record = opened.metadata.own_record()
        if record is None:
            return None
        if record.grid:
            raise InvalidRequest(
                f"{path} is a sheet of several images",
                hint="name one of them; limner grid --keep writes them",
            )
        return cls(path, record, opened.image.convert("RGB"), opened.format)

    def with_inputs(self, given: Collection[str], assets: "Assets | None") -> "Original":
        """The same with the present path of each input image: as stored, next to this image, or by content.

        Args:
            given: Fields whose images the command line replaces.
            assets: Folders to search in addition to that of this image.

        Raises:
            InvalidRequest: An input image was not found.
        """
        from limner.images.assets import Assets
        from limner.images.inputs import map_inputs

        known = Assets() if assets is None else assets
        known = replace(known, folders=(*known.folders, self.path.parent))

        def located(name: str, source: str) -> str:
            if name in given or source.startswith("sha256:"):
                return source if name in given else known.locate(source, name)
            digest = self.record.inputs.get(source)
            for path in (source, str(self.path.parent / source)):
                found = known.digest(path)
                if found is not None:
                    if digest not in (None, found):
                        terminal.warning(f"{path} has changed since {self.path} was made with it")
                    return path
            elsewhere = None if digest is None else known.find(digest)
            if elsewhere is None:
                raise InvalidRequest(
                    f"{self.path} was made with {source}, which was not found",
                    hint=f"give `{name}`, or the folder that holds it as `assets_dirs`",
                    fields=(name,),
                )
            terminal.note(f"{source} was not found; {elsewhere} has the same content")
            return str(elsewhere)

        return self.asking(map_inputs(self.record.request, located))

    def asking(self, request: "GenerationRequest") -> "Original":
        """The same with another request in its record."""
        return replace(self, record=self.record.model_copy(update={"request": request}))

    def loading(self, models: ModelOptions) -> ModelOptions:
        """The options with device, precision, backend and prediction type: as given, else as recorded if this
        machine has them."""
        import torch

        recorded = self.record.environment
        device, precision = models.device, models.precision
        if device is None:
            device = "cpu" if str(recorded.get("device", "")).startswith("cpu") else "auto"
        if precision is None:
            on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
            precision = str(recorded.get("precision", "auto"))
            if on_cpu and precision == "fp16":
                precision = "auto"
        said = {
            name: getattr(models, name) or (str(recorded[name]) if name in recorded else None)
            for name in ("backend", "prediction_type")
        }
        backend, prediction = said["backend"], said["prediction_type"]
        return replace(
            models, device=device, precision=precision, backend=backend, prediction_type=prediction
        )
