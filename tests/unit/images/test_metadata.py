"""The request in a picture: written, read back, and read from other programs' pictures."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, PngImagePlugin

from limner.errors import InvalidPicture, InvalidRequest, OutputError
from limner.images.infotext import parse_infotext
from limner.images.metadata import read_record, read_request, read_texts
from limner.images.picture import Picture, write_picture
from limner.images.record import Record
from limner.images.result import save_new
from limner.images.sheets import contact_sheet
from limner.request import GenerationRequest


@pytest.fixture
def record():
    request = GenerationRequest(
        prompt='a (red:1.2) house, "quoted"\nnext line é 猫',
        negative_prompt="fog",
        width=64,
        height=72,
        steps=20,
        guidance_scale=7.5,
        sampler="dpmpp_2m",
        sigma_schedule="karras",
        timestep_spacing="leading",
        seed=2**53 - 1,
        clip_skip=2,
    )
    return Record(
        request=request,
        model={"name": "folder/tiny", "family": "sd1", "sha256": "ab" * 32},
        environment={"limner": "0.1.0", "torch": "2.13.0", "threads": 2},
        warnings=("mind the gap",),
    )


@pytest.fixture
def picture(record):
    return Picture(Image.effect_noise((64, 72), 50).convert("RGB"), record)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_saved_picture_keeps_its_whole_record(picture, record, tmp_path, suffix):
    path = tmp_path / f"house.{suffix}"
    picture.save(path)
    assert read_record(path) == record
    assert read_request(path).fields == record.request.model_dump(exclude_none=True)
    assert read_texts(path)["parameters"] == record.infotext()


def test_pictures_of_one_seed_that_threads_save_at_once_are_all_kept(picture, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: save_new(picture, tmp_path), range(32)))
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert len(set(paths)) == 32


def test_a_png_keeps_its_pixels(picture, tmp_path):
    write_picture(picture, tmp_path / "house.png")
    with Image.open(tmp_path / "house.png") as read:
        assert read.tobytes() == picture.tobytes()


def test_the_parameters_are_what_the_fields_viewers_expect(record):
    fields = parse_infotext(record.infotext())
    assert fields["Prompt"] == record.request.prompt
    assert fields["Negative prompt"] == "fog"
    expected = {
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "7.5",
        "Seed": str(2**53 - 1),
        "Size-1": "64",
        "Size-2": "72",
        "Model hash": "ababababab",
        "Model": "tiny",
        "Clip skip": "2",
        "RNG": "CPU",
    }
    assert expected.items() <= fields.items()


def test_a_picture_of_another_program_is_read_by_its_parameters(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text(
        "parameters",
        "a cat\nNegative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 3, Size: 64x72",
    )
    Image.new("RGB", (64, 72)).save(tmp_path / "cat.png", pnginfo=text)
    fields = read_request(tmp_path / "cat.png").fields
    assert GenerationRequest.of(fields) == GenerationRequest(
        prompt="a cat",
        negative_prompt="dog",
        steps=20,
        sampler="dpmpp_2m",
        sigma_schedule="karras",
        guidance_scale=7.0,
        seed=3,
        width=64,
        height=72,
        noise="gpu",  # where nothing is said
    )


def read_parameters(tmp_path, text, overriding=()):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    Image.new("RGB", (64, 72)).save(tmp_path / "x.png", pnginfo=chunks)
    return read_request(tmp_path / "x.png", overriding)


GUIDED = {
    "s_churn": 4.0,
    "s_tmin": 0.1,
    "s_tmax": 9.0,
    "s_noise": 1.05,
    "guidance_skip": 1.5,
    "sampler": "euler",
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            GUIDED,
            {
                "Sigma churn": "4",
                "Sigma tmin": "0.1",
                "Sigma tmax": "9",
                "Sigma noise": "1.05",
                "NGMS": "1.5",
            },
        ),
        ({"eta": 0.5, "sampler": "euler_a"}, {"Eta": "0.5", "Sampler": "Euler a"}),
        ({"eta": 0.5, "sampler": "ddim"}, {"Eta DDIM": "0.5"}),
        (
            {"eta": 0.5, "sampler": "ddim_cfg_pp", "guidance_scale": 0.56},
            {"Eta DDIM": "0.5", "CFG scale": "7"},
        ),
        ({"sampler": "euler_cfg_pp", "guidance_scale": 0.56}, {"CFG scale": "0.56"}),
        ({"sampler": "dpmpp_2m_sde_heun"}, {"Sampler": "DPM++ 2M SDE Heun"}),
        ({"sigma_schedule": "align_your_steps"}, {"Schedule type": "Align Your Steps"}),
        ({"sampler": "unipc_bh1"}, {"Sampler": "UniPC"}),
        ({"sampler": "unipc_bh2"}, {"Sampler": "UniPC", "UniPC variant": "bh2"}),
        ({"sampler": "unipc"}, {"Sampler": "UniPC", "UniPC variant": "bh2", "UniPC order": "2"}),
    ],
)
def test_guidance_and_noise_are_read_as_they_were_written(record, tmp_path, fields, expected):
    request = record.request.model_copy(update=fields)
    text = record.model_copy(update={"request": request}).infotext()
    assert expected.items() <= parse_infotext(text).items()
    read = read_parameters(tmp_path, text).fields
    assert {name: read[name] for name in fields} == pytest.approx(fields)
    assert GenerationRequest.of(read)


def test_what_says_nothing_in_webui_is_not_asked_for(tmp_path):
    text = "x\nSteps: 20, Sampler: Euler, CFG scale: 7, Sigma tmin: 0.1, Sigma tmax: 0"
    assert not {"s_tmin", "s_tmax"} & read_parameters(tmp_path, text).fields.keys()


HIRES = {
    "hires_strength": 0.45,
    "hires_steps": 12,
    "hires_upscaler": "latent_bicubic_antialiased",
    "hires_sampler": "euler_a",
    "hires_sigma_schedule": "exponential",
    "hires_prompt": "more, and better: houses",
    "hires_negative_prompt": "mist",
    "tiling": "xy",
}


@pytest.mark.parametrize("size", [{"hires_scale": 1.5}, {"hires_width": 128}, {"hires_height": 144}])
def test_a_second_pass_is_written_and_read_as_webui_does(record, tmp_path, size):
    loras = ({"name": "one", "weight": 0.5},)
    request = GenerationRequest.of({**record.request.model_dump(), **HIRES, **size, "loras": loras})
    infotext = record.model_copy(update={"request": request}).infotext()
    fields = parse_infotext(infotext)
    expected = {
        "Denoising strength": "0.45",
        "Hires steps": "12",
        "Hires upscaler": "Latent (bicubic antialiased)",
        "Hires sampler": "Euler a",
        "Hires schedule type": "Exponential",
        "Hires prompt": "more, and better: houses<lora:one:0.5>",
        "Hires negative prompt": "mist",
        "Tiling": "True",
    }
    assert expected.items() <= fields.items()
    read = GenerationRequest.of(read_parameters(tmp_path, infotext).fields)
    assert {name: getattr(read, name) for name in (*HIRES, *size)} == {
        **HIRES,
        **size,
        "hires_prompt": expected["Hires prompt"],
    }


def test_the_second_pass_may_leave_its_schedule_to_its_sampler(tmp_path):
    text = (
        "x\nSteps: 20, Sampler: Euler, Schedule type: Uniform, CFG scale: 7, Seed: 3, Size: 64x64, "
        "Hires upscale: 2, Hires upscaler: Latent, Hires sampler: DPM++ 2M, Hires schedule type: Automatic"
    )
    read = GenerationRequest.of(read_parameters(tmp_path, text).fields)
    assert (read.sigma_schedule, read.hires_sigma_schedule) == ("uniform", "karras")


def test_a_second_pass_of_webui_s(tmp_path):
    parameters = (
        "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 64x72, Denoising strength: 0.6, "
        "Hires upscale: 2, Hires upscaler: Latent"
    )
    read = GenerationRequest.of(read_parameters(tmp_path, parameters).fields)
    assert (read.hires_scale, read.hires_strength, read.hires_upscaler) == (2.0, 0.6, "latent")
    assert read.hires_steps is None
    assert read.strength is None
    parameters = parameters.replace("Hires upscale: 2", "Hires resize: 0x144, Hires steps: 0")
    read = GenerationRequest.of(read_parameters(tmp_path, parameters).fields)
    assert (read.hires_width, read.hires_height, read.hires_steps) == (None, 144, None)
    with pytest.raises(InvalidRequest, match=r"hires_upscaler is '4x-UltraSharp'"):
        GenerationRequest.of(read_parameters(tmp_path, parameters.replace("Latent", "4x-UltraSharp")).fields)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ("x\nSteps: many, Sampler: Euler, CFG scale: 7, Seed: 3", InvalidPicture),
        ("x\nSteps: 20, Sampler: Restart 9000, CFG scale: 7, Seed: 3", InvalidRequest),
    ],
)
def test_parameters_that_cannot_be_honoured_are_errors(tmp_path, parameters, error):
    with pytest.raises(error):
        read_parameters(tmp_path, parameters)


def test_a_picture_without_words_is_an_error(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert read_record(tmp_path / "x.png") is None
    with pytest.raises(InvalidPicture, match="contains no known generation metadata"):
        read_request(tmp_path / "x.png")


def test_what_another_program_wrote_is_refused_by_its_name(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("workflow", "{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=chunks)
    with pytest.raises(InvalidPicture) as caught:
        read_request(tmp_path / "x.png")
    assert "ComfyUI, AUTOMATIC1111" in caught.value.hint
    with pytest.raises(InvalidPicture, match="parameters in JSON"):
        read_parameters(tmp_path, '{"a program": {"prompt": "a cat", "steps": 20, "seed": 3}}')


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"extra": 1}, {"request": {"prompt": 5}}])
def test_a_record_that_is_not_understood_is_an_error_not_a_guess(record, tmp_path, change):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("limner", json.dumps({**json.loads(record.model_dump_json()), **change}))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=text)
    with pytest.raises(InvalidPicture, match="cannot read"):
        read_record(tmp_path / "x.png")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_picture_is_an_error(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InvalidPicture):
        read_texts(tmp_path / "x.png")


def test_a_truncated_picture_is_an_error(picture, tmp_path):
    picture.save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidPicture):
        read_texts(tmp_path / "x.png")


def test_numbered_files_are_never_overwritten(picture, tmp_path):
    names = [save_new(picture, tmp_path / "new" / "folder").name for _ in range(3)]
    assert names == [f"0000{n}-{2**53 - 1}.png" for n in (1, 2, 3)]


def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(picture, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        save_new(picture, tmp_path / "file")
    with pytest.raises(OutputError, match="suffix"):
        write_picture(picture, tmp_path / "x.hologram")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_differences_name_what_changed(record):
    assert record.differences(record.environment) == []
    changed = {**record.environment, "torch": "3.0", "threads": 4}
    assert record.differences(changed) == ["threads was 2, is 4", "torch was 2.13.0, is 3.0"]


def test_labels_of_a_contact_sheet_stay_below_their_pictures(picture):
    request = picture.record.request.model_copy(update={"seed": 2**53 - 1})
    long = Picture(Image.new("RGB", (64, 72)), picture.record.model_copy(update={"request": request}))
    sheet = contact_sheet([long] * 2, columns=2).convert("L")
    assert sheet.crop((8, 80, 72, 98)).getextrema()[0] < 128
    assert sheet.crop((72, 0, 80, sheet.height)).getextrema() == (255, 255)


def test_a_contact_sheet_holds_every_picture(picture):
    sheet = contact_sheet([picture] * 5, columns=3)
    assert sheet.width > 3 * picture.width
    assert sheet.height > 2 * picture.height
