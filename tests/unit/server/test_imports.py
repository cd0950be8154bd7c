"""Pictures of any program: each value is understood, replaced, or named as not understood."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.described_pictures import picture
from tests.serving import serving, submit

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
PLAIN = "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 3, Size: 128x96"


def lora(path, width=192, scale=1.0, **metadata):
    """A LoRA for texts of `width` channels; picturebook's have 192. Returns the hash of its file."""
    tensors = {f"{KEY}.lora_down.weight": np.full((2, width), scale, np.float32)}
    tensors |= {f"{KEY}.lora_up.weight": np.zeros((48, 2), np.float32)}
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    """A service with two LoRAs for its model and one for another family, all hashed."""
    folder = tmp_path_factory.mktemp("stocked")
    hashes = {
        name: lora(folder / "loras" / f"{name}.safetensors", scale=i + 1) for i, name in enumerate("ab")
    }
    lora(folder / "loras/ink_sketch_v2.safetensors", scale=7)
    lora(folder / "loras/big.safetensors", width=2048)
    with serving(folder / "data", lora_dirs=(folder / "loras",)) as served:
        served.state.catalogue.refresh()
        assert served.state.catalogue.wait_hashed(60)
        yield served, hashes


def dropped(stocked, data, **headers):
    answer = stocked[0].client.post("/api/v1/imports", content=data, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def understood(found):
    return {one["field"]: one["value"] for one in found["understood"]}


def test_an_infotext_becomes_a_request_that_can_be_drawn(stocked):
    text = (
        f"a boat\nNegative prompt: rain\n{PLAIN}, Model hash: 0123456789, Model: dreamshaper_8, Version: v1"
    )
    for data in (picture(parameters=text), picture("JPEG", parameters=text)):
        found = dropped(stocked, data)
        assert found["program"] == "AUTOMATIC1111"
        said = understood(found)
        assert (said["prompt"], said["negative_prompt"], said["steps"]) == ("a boat", "rain", 20)
        assert (said["sampler"], said["sigma_schedule"]) == ("dpmpp_2m", "karras")
        [model] = found["replaced"]
        assert (model["field"], model["given"], model["used"]) == ("model", "dreamshaper_8", "picturebook")
        assert "nothing says which family" in model["reason"]
        assert [(one["name"], one["idle"]) for one in found["not_understood"]] == [("Version", True)]
        assert (found["width"], found["height"], found["note"]) == (128, 96, None)
        done = submit(stocked[0].client, **found["request"])
        assert [job["state"] for job in done["jobs"]] == ["done"]


def test_the_picture_itself_is_an_upload(stocked):
    data = picture(parameters=f"a boat\n{PLAIN}")
    found = dropped(stocked, data)
    assert found["upload"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert stocked[0].client.get(f"/api/v1/uploads/{found['upload'][7:]}").content == data


def test_a_lora_is_found_by_its_hash_else_by_a_similar_name_else_left_out(stocked):
    served, hashes = stocked
    prompt = "a boat <lora:renamed:0.5> <lora:inksketch:1> <lora:nothing at all:0.3> <lora:big:1>"
    more = f'Lora hashes: "renamed: {hashes["b"][:12]}, inksketch: 0123456789ab"'
    found = dropped(stocked, picture(parameters=f"{prompt}\n{PLAIN}, Model: picturebook, {more}"))
    assert found["request"]["prompt"].split() == ["a", "boat", "<lora:b:0.5>", "<lora:ink_sketch_v2:1>"]
    [replaced] = found["replaced"]
    assert (replaced["field"], replaced["given"], replaced["used"]) == ("loras", "inksketch", "ink_sketch_v2")
    left_out = {one["value"]["name"]: one["reason"] for one in found["not_understood"]}
    assert left_out["nothing at all"] == "there is no LoRA of this name or hash here"
    assert "cannot be used with the model picturebook: it is for Stable Diffusion XL" in left_out["big"]
    assert submit(served.client, **found["request"])["jobs"][0]["state"] == "done"


def test_a_file_of_the_same_name_with_another_hash_is_said_to_be_another(stocked):
    more = 'Lora hashes: "a: ffffffffffff"'
    found = dropped(stocked, picture(parameters=f"x <lora:a:1>\n{PLAIN}, Model: picturebook, {more}"))
    [replaced] = found["replaced"]
    assert replaced["reason"] == "the file of this name here is another one: its hash is not ffffffffff"
    assert found["request"]["prompt"] == "x <lora:a:1>"


@pytest.mark.parametrize(
    ("said", "field", "given", "used"),
    [
        ("Sampler: DPM++ 2M Turbo", "sampler", "DPM++ 2M Turbo", "dpmpp_2m"),
        ("Sampler: qqq", "sampler", "qqq", None),
        ("Size: 130x96", "width", 130, 128),
        ("Hires upscaler: 4x-UltraSharp, Hires upscale: 2, Denoising strength: 0.4", "hires_upscaler",
         "4x-UltraSharp", "lanczos"),
    ],
)  # fmt: skip
def test_what_limner_lacks_is_replaced_by_the_nearest(stocked, said, field, given, used):
    kept = [one for one in PLAIN.split(", ") if one.split(":")[0] not in said]
    text = ", ".join([*kept, said, "Model: picturebook"])
    found = dropped(stocked, picture(parameters=f"a boat\n{text}"))
    [replaced] = found["replaced"]
    assert (replaced["field"], replaced["given"], replaced["used"]) == (field, given, used)
    assert found["request"].get(field) == used
    assert found["note"] is None
    assert submit(stocked[0].client, **found["request"])["jobs"][0]["state"] == "done"


def test_every_value_of_an_infotext_is_somewhere(stocked):
    others = {
        "VAE": "vae.pt",
        "ENSD": "31337",
        "Denoising strength": "0.5",
        "ControlNet 0": '"Module: canny, Model: control_canny, Weight: 1"',
        "Dynamic thresholding enabled": "True",
        "TI hashes": '"easynegative: 0123456789ab"',
        "Version": "v1.9",
        "Clip skip": "200",
    }
    text = f"{PLAIN}, " + ", ".join(f"{key}: {value}" for key, value in others.items())
    found = dropped(stocked, picture(parameters=f"a boat\n{text}, Model: picturebook"))
    named = {one["name"]: one for one in found["not_understood"]}
    assert named.keys() == {"clip_skip" if key == "Clip skip" else key for key in others}
    assert named["ENSD"]["value"] == "31337"
    assert named["clip_skip"]["value"] == 200
    assert "read as words" in named["TI hashes"]["reason"]
    assert named["VAE"]["reason"] == "models of this service are used with their own autoencoder"
    assert [name for name, one in named.items() if one["idle"]] == ["Version"]


def test_a_graph_of_comfyui_names_the_nodes_that_are_not_taken_over(stocked):
    def node(kind, **inputs):
        return {"class_type": kind, "inputs": inputs}

    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="sdxl/juggernautXL_v9.safetensors"),
        "2": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "3": node("CLIPTextEncode", text="a boat", clip=["1", 1]),
        "4": node("CLIPTextEncode", text="", clip=["1", 1]),
        "5": node("KSampler", model=["1", 0], positive=["3", 0], negative=["4", 0], latent_image=["2", 0],
                  seed=5, steps=8, cfg=4.0, sampler_name="exotic", scheduler="karras", denoise=1.0),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["8", 0]),
        "8": node("FaceDetailer", image=["6", 0], guide_size=512),
    }  # fmt: skip
    found = dropped(stocked, picture(prompt=graph))
    assert found["program"] == "ComfyUI"
    [node_left] = found["not_understood"]
    assert node_left["name"] == "FaceDetailer (node 8)"
    assert node_left["value"]["guide_size"] == 512
    replaced = {one["field"]: one for one in found["replaced"]}
    assert (replaced["sampler"]["given"], replaced["sampler"]["used"]) == ("exotic", None)
    assert "none of its family (Stable Diffusion XL)" in replaced["model"]["reason"]
    assert found["request"]["sigma_schedule"] == "karras"


def test_limners_own_pictures_come_back_whole(stocked):
    served, _ = stocked
    done = submit(served.client, prompt="a boat <lora:a:0.5>", steps=3, seed=9, guidance_scale=4.5)
    image = done["jobs"][0]["image"]
    data = served.client.get(f"/api/v1/images/{image['id']}/file").content
    found = dropped(stocked, data)
    assert found["program"] == "Limner"
    assert (found["replaced"], found["not_understood"]) == ([], [])
    said = understood(found)
    assert (said["steps"], said["seed"], said["guidance_scale"]) == (3, 9, 4.5)
    assert said["model"] == "picturebook"


def test_an_input_image_that_is_not_here_is_named(stocked):
    served, _ = stocked
    start = picture(size=(64, 64))
    reference = served.client.post("/api/v1/uploads", content=start).json()["reference"]
    image = submit(served.client, image=reference, strength=0.5)["jobs"][0]["image"]["id"]
    data = served.client.get(f"/api/v1/images/{image}/file").content
    assert understood(dropped(stocked, data))["image"] == reference
    served.client.delete(f"/api/v1/uploads/{reference}")
    found = dropped(stocked, data)
    assert {one["name"] for one in found["not_understood"]} == {"image", "strength"}
    assert "image" not in found["request"]


def test_a_picture_that_says_nothing_is_still_an_upload(stocked):
    found = dropped(stocked, picture(size=(40, 30)))
    assert (found["program"], found["request"], found["understood"]) == (None, None, [])
    assert (found["width"], found["height"]) == (40, 30)
    assert "no known generation metadata" in found["note"]


@pytest.mark.parametrize(
    "chunks",
    [
        {"parameters": f"a boat\n{PLAIN.replace('Steps: 20', 'Steps: many')}"},
        {"parameters": '{"prompt": "in another grammar"}'},
        {"workflow": {"nodes": []}},
        {"invokeai_metadata": {"positive_prompt": "a", "loras": 5}},
        {"parameters": {"base_model": "x", "loras": [[1, "y"]], "steps": 1e999}},
        {"limner": '{"request": 1}'},
    ],
)
def test_metadata_that_cannot_be_read_is_shown_as_it_is(stocked, chunks):
    found = dropped(stocked, picture(**chunks))
    assert found["request"] is None
    assert found["program"] is not None
    assert found["note"]
    assert [one["name"] for one in found["not_understood"]] == list(chunks)


def test_values_that_json_cannot_carry_are_shown_all_the_same(stocked):
    given = '{"positive_prompt": "a \\ud800 boat", "cfg_scale": NaN, "odd": [Infinity, "\\udfff"]}'
    found = dropped(stocked, picture(invokeai_metadata=given))
    odd = {one["name"]: one["value"] for one in found["not_understood"]}
    assert odd["odd"] == ["inf", "\\udfff"]
    assert odd["guidance_scale"] == "nan"


@pytest.mark.parametrize("data", [b"", b"no picture", picture()[:-40], picture(size=(300, 200))[:120]])
def test_broken_files_are_refused_and_not_kept(stocked, data):
    served, _ = stocked
    before = served.client.get("/api/v1/uploads").json()
    answer = served.client.post("/api/v1/imports", content=data)
    assert answer.status_code == 422
    assert "read as an image" in answer.json()["detail"] or "no image" in answer.json()["detail"]
    assert served.client.get("/api/v1/uploads").json() == before


def test_other_bodies_are_refused(stocked):
    answer = stocked[0].client.post("/api/v1/imports", json={"image": "x"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    large = picture(size=(9000, 9000))
    assert "pixels" in stocked[0].client.post("/api/v1/imports", content=large).json()["detail"]
