"""A picture keeps its record in every way that Pillow saves, or says that the format cannot."""

import io
import pickle
import warnings
from pathlib import Path

import pytest
from PIL import Image

from limner.errors import OutputError
from limner.images.infotext import parse_infotext
from limner.images.metadata import read_record, read_request, read_texts
from limner.images.picture import Picture, RecordWarning, encode, losses, write_picture
from limner.images.record import Record
from limner.request import GenerationRequest, Lora

FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "AVIF": "avif", "TIFF": "tif"}


def picture_of(prompt="a red house, 猫", **fields):
    request = GenerationRequest(
        prompt=prompt, **{"seed": 7, "steps": 3, "width": 64, "height": 64, "sampler": "euler"} | fields
    )
    request = request.model_copy(update={"sigma_schedule": "karras", "guidance_scale": 5.0})
    record = Record(request=request, model={"name": "tiny"}, environment={"limner": "0.1.0"})
    return Picture(Image.new("RGB", (64, 64), "red"), record)


def is_kept(picture, data):
    file = io.BytesIO(data)
    assert parse_infotext(read_texts(file)["parameters"])["Prompt"] == picture.record.request.prompt
    return read_record(file) == picture.record


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "spell", [str, str.lower, str.title, FORMATS.get, lambda name: FORMATS[name].upper()]
)
def test_the_record_is_kept_whatever_the_format_is_called(format, spell):
    picture, buffer = picture_of(), io.BytesIO()
    picture.save(buffer, spell(format) or format)
    assert is_kept(picture, buffer.getvalue())


@pytest.mark.parametrize("suffix", [*FORMATS.values(), "PNG", "Jpeg", "jfif", "tiff"])
@pytest.mark.parametrize("kind", [str, Path, lambda path: str(path).encode(), lambda path: path.open("wb")])
def test_the_record_is_kept_whatever_is_saved_to(tmp_path, suffix, kind):
    picture, path = picture_of(), tmp_path / f"a.{suffix}"
    target = kind(path)
    picture.save(target)
    if hasattr(target, "close"):
        target.close()
    assert is_kept(picture, path.read_bytes())


def test_a_buffer_with_a_name_and_pillows_own_parameters():
    picture, buffer = picture_of(), io.BytesIO()
    buffer.name = "a.webp"
    picture.save(buffer, lossless=True, quality=90)
    assert is_kept(picture, buffer.getvalue())
    buffer = io.BytesIO()
    picture.save(buffer, format="jpeg", quality=95, optimize=True, progressive=True)
    assert is_kept(picture, buffer.getvalue())


def test_metadata_that_is_given_takes_the_records_place():
    buffer = io.BytesIO()
    picture_of().save(buffer, "jpeg", exif=b"")
    assert read_texts(buffer) == {}


@pytest.mark.parametrize("format", ["GIF", "bmp", "JPEG2000", "jp2", "TGA", "PPM"])
def test_a_format_that_keeps_no_record_says_so(format):
    with pytest.warns(RecordWarning, match="cannot keep the request; PNG"):
        picture_of().save(io.BytesIO(), "JPEG2000" if format == "jp2" else format)
    assert losses(picture_of(), format)
    assert losses(Image.new("RGB", (8, 8)), format) == ()


@pytest.mark.parametrize("format", FORMATS)
def test_encode_gives_the_bytes_with_the_record(format):
    picture = picture_of()
    assert is_kept(picture, encode(picture, format.lower()))
    assert is_kept(picture, encode(picture, f".{FORMATS[format]}"))
    assert losses(picture, format) == ()


def test_what_cannot_be_encoded_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="no known image format"):
        encode(picture_of(), "docx")
    with pytest.raises(OutputError, match="20000 x 1; WEBP holds 16383 pixels a side"):
        write_picture(Image.new("RGB", (20_000, 1)), tmp_path / "a.webp")
    with pytest.raises(OutputError, match="cannot be written as JPEG"):
        encode(Image.new("RGBA", (8, 8)), "jpg")


def test_copies_and_pickles_keep_the_record():
    picture = picture_of()
    for other in (picture.copy(), picture.convert("RGB"), pickle.loads(pickle.dumps(picture))):
        assert other.record == picture.record
        assert other.tobytes() == picture.tobytes()
        assert is_kept(picture, encode(other, "png"))


@pytest.mark.parametrize(
    "prompt",
    ["a red house in the snow, " * 1200, "雪の中の赤い家、" * 8000, "a b\n" * 16_000, "é" * 65_000],
    ids=["long", "Japanese", "lines", "longest"],
)
@pytest.mark.parametrize("format", FORMATS)
def test_the_longest_prompts_are_kept_whole_for_limner(format, prompt):
    picture = picture_of(prompt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordWarning)
        buffer = io.BytesIO()
        picture.save(buffer, format)
    assert read_record(buffer) == picture.record
    text = read_texts(buffer)["parameters"]
    if losses(picture, format):
        assert format == "JPEG"
        assert len(text) > 30_000
        shown, _, parameters = text.rpartition("\n")
        assert shown.endswith("… ")
        assert prompt.startswith(shown[:-2])
        assert "Seed: 7" in parameters
    else:
        assert text == picture.record.infotext()


def test_a_jpeg_whose_prompts_are_cut_for_others_says_so():
    with pytest.warns(RecordWarning, match="which keeps 64 KB"):
        picture_of("雪" * 40_000).save(io.BytesIO(), "JPEG")


def test_a_sheet_whose_axes_alone_are_too_long_for_a_jpeg():
    picture = picture_of()
    grid = {"x": {"prompt": ("猫" * 20_000, "犬" * 20_000)}}
    sheet = Picture(picture, picture.record.model_copy(update={"grid": grid}))
    assert losses(sheet, "jpg")
    file = io.BytesIO(encode(sheet, "jpg"))
    assert read_record(file).grid == grid
    assert "parameters" not in read_texts(file)


@pytest.mark.parametrize(
    "name",
    ["ink_v1.5", "ink_v1", "my style, v2.1 (final)", "a.b.c", "v1.", "[x] (y:1)"],
)
def test_a_lora_is_named_without_folder_and_suffix_and_with_its_dots(name):
    for file in (name, f"{name}.safetensors", f"{name}.pt", f"some/folder.v2/{name}.safetensors"):
        loras = (Lora(name=file, weight=0.7),)
        picture = picture_of("a house", loras=loras, hires_prompt="a large house", hires_scale=2.0)
        text = parse_infotext(picture.record.infotext())
        assert text["Prompt"] == f"a house<lora:{name}:0.7>"
        assert text["Hires prompt"] == f"a large house<lora:{name}:0.7>"


def test_names_in_lora_hashes_have_no_signs_that_would_end_them():
    picture = picture_of()
    model = {"name": "v1.5.safetensors", "lora x/my, v2.1: a.safetensors": "ab" * 32}
    text = parse_infotext(picture.record.model_copy(update={"model": model}).infotext())
    assert text["Lora hashes"] == "my v2.1 a: " + "ab" * 6
    assert text["Model"] == "v1.5"


def test_a_gifs_comment_is_read_as_webui_reads_it(tmp_path):
    text = "a cat\nSteps: 12, Sampler: Euler a, CFG scale: 5, Seed: 77, Size: 16x16"
    Image.new("P", (16, 16)).save(tmp_path / "a.gif", comment=text.encode())
    assert read_request(tmp_path / "a.gif").fields["seed"] == 77


def test_broken_exif_is_no_text(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_texts(tmp_path / "a.jpg") == {}
