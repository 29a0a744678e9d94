"""A real ComfyUI server with this pack: its nodes, its workflows, and the nano demo over HTTP and websocket."""

import copy
import io
import json
import re
import shutil
import urllib.error

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from locales import build
from tests.hosts.comfyui_host import ROOT, Server, missing

WHY_NOT = missing()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

FRAMES, STEPS = 9, 10  # of the nano demo in tests
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
REAL = [name for name in WORKFLOWS if "nano" not in name]
NODES = {  # id: category, required inputs, optional inputs, outputs
    "HetCacheLoadMaskVideo": (
        "image/mask",
        "file channel threshold invert grow feather", "images length_policy frame_rate skip_frames frame_cap path",
        {"mask": "MASK", "frame_count": "INT", "fps": "FLOAT"},
    ),
    "HetCachePolicySettings": (
        "model/patch/wan", "preset speed memory_budget_mb method",
        "warmup cooldown max_reuse refresh margin_space margin_time context_share partials memory_offload "
        "mask_threshold max_mask_fraction schedule profile replan",
        {"policy": "HETCACHE_POLICY"},
    ),
    "HetCachePatchModel": (
        "model/patch/wan", "model", "policy mask", {"model": "MODEL", "stats": "HETCACHE_STATS"},
    ),
    "HetCacheStats": (
        "model/patch/wan", "latent", "stats video",
        {"latent": "LATENT", "report": "STRING", "picture": "IMAGE", "json": "STRING"},
    ),
    "HetCacheCompare": (
        "model/patch/wan", "before after mask gain", "ring",
        {"frames": "IMAGE", "difference": "IMAGE", "report": "STRING", "json": "STRING"},
    ),
    "HetCacheProfileModel": (
        "model/patch/wan", "model positive latent name steps reused_share seed", "mask",
        {"file": "STRING", "picture": "IMAGE"},
    ),
    "HetCacheDemoModel": (
        "model/loaders", "colour shape", "",
        {"model": "MODEL", "vae": "VAE", "positive": "CONDITIONING", "negative": "CONDITIONING", "video": "IMAGE",
         "mask": "MASK"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("comfyui"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def nodes(server) -> dict:
    return server.get("/object_info")


@pytest.fixture(scope="module")
def inputs(server):
    """The files the workflows for real models ask for; the models among them are nano under other names."""
    media, models, weights = server.folder / "input", server.folder / "models", ROOT / "nano" / "weights"
    media.mkdir(exist_ok=True)
    for name in ("your clip.mp4", "your mask.mp4"):
        shutil.copy(ROOT / "demo" / "assets" / "big_buck_bunny.mp4", media / name)
    Image.new("RGB", (80, 60), "orange").save(media / "your reference.png")

    def place() -> None:
        shutil.copy(weights / "nano_vace.safetensors", _folder("diffusion_models") / "wan2.1_vace_14B_fp16.safetensors")
        shutil.copy(weights / "nano_vae.safetensors", _folder("vae") / "wan_2.1_vae.safetensors")
        width = load_file(weights / "nano_vace.safetensors")["blocks.0.self_attn.q.weight"].shape[0]
        name = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
        lora = {name.format("down"): torch.randn(4, width) * 0.02, name.format("up"): torch.randn(width, 4) * 0.02}
        save_file(lora, _folder("loras") / "Wan21_CausVid_14B_T2V_lora_rank32.safetensors")

    def _folder(kind: str):
        (models / kind).mkdir(parents=True, exist_ok=True)
        return models / kind

    return place


def workflow(name: str) -> dict:
    """The form for the API."""
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


def find(prompt: dict, kind: str) -> tuple[str, dict]:
    """The id and the inputs of the first node of a kind."""
    return next((id_, node["inputs"]) for id_, node in prompt.items() if node["class_type"] == kind)


def small_demo(**policy) -> dict:
    """The nano demo, at a size for tests, that also saves its latent and shows all numbers."""
    prompt = workflow("hetcache_nano_demo")
    demo, _ = find(prompt, "HetCacheDemoModel")
    for node in prompt.values():
        node["inputs"] = {name: ["short", 0] if value == [demo, 4] else value for name, value in node["inputs"].items()}
    short = {"image": [demo, 4], "batch_index": 0, "length": FRAMES}
    prompt["short"] = {"class_type": "ImageFromBatch", "inputs": short}
    find(prompt, "WanVaceToVideo")[1].update(width=96, height=96, length=FRAMES)
    find(prompt, "KSampler")[1].update(steps=STEPS)
    find(prompt, "HetCachePolicySettings")[1].update(policy)
    latent = find(prompt, "VAEDecode")[1]["samples"]
    prompt["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": latent, "filename_prefix": "latent"}}
    prompt["numbers"] = {"class_type": "PreviewAny", "inputs": {"source": [find(prompt, "HetCacheStats")[0], 3]}}
    return prompt


def bypassed(prompt: dict) -> dict:
    """With HetCache Patch Model bypassed, as the editor does it: its model input takes the place of its output."""
    prompt = copy.deepcopy(prompt)
    id_, node = find(prompt, "HetCachePatchModel")
    find(prompt, "KSampler")[1]["model"] = node["model"]
    del prompt[id_], find(prompt, "HetCacheStats")[1]["stats"]
    return prompt


def saved(server: Server, outcome) -> torch.Tensor:
    """The latent a run of `small_demo` saved."""
    (file,) = outcome.outputs["latent"]["latents"]
    return load_file(server.folder / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def report_of(prompt: dict, outcome) -> str:
    return outcome.outputs[find(prompt, "HetCacheStats")[0]]["text"][0]


# ---- what the server offers


def test_it_starts_without_an_error(server):
    log = server.log.read_text()
    assert "hetcache" in log and "Starting server" in log
    assert "Traceback" not in log and "IMPORT FAILED" not in log, log


def test_it_knows_our_nodes(nodes):
    assert {name for name in nodes if nodes[name]["python_module"] == "custom_nodes.hetcache"} == set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_a_node_shows_its_schema(nodes, name):
    node, (category, required, optional, outputs) = nodes[name], NODES[name]
    assert node["category"] == category
    assert node["input_order"].get("required", []) == required.split()
    assert node["input_order"].get("optional", []) == optional.split()
    assert dict(zip(node["output_name"], node["output"])) == outputs
    assert node["description"] and node["display_name"] and all(node["output_tooltips"])
    for part in ("required", "optional"):
        for input_, (_, options) in node["input"].get(part, {}).items():
            assert options.get("tooltip"), f"{input_} has no tooltip"
    assert node["output_node"] == (name in ("HetCacheStats", "HetCacheCompare", "HetCacheProfileModel"))


def test_the_words_in_every_language_are_those_of_the_nodes(server, nodes):
    catalogue = build.english({name: nodes[name] for name in NODES})
    assert build.read("en") == catalogue, "run python -m locales.build"
    served = server.get("/i18n")
    for language in build.LANGUAGES:
        assert not build.problems(language, catalogue)
        assert served[language]["nodeDefs"] == build.read(language)


@pytest.mark.parametrize("name", NODES)
def test_a_node_has_a_help_page_with_a_picture(server, name):
    page = server.bytes(f"/extensions/hetcache/docs/{name}.md").decode()
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)  # the frontend looks for it beside the page
    assert Image.open(io.BytesIO(server.bytes(f"/extensions/hetcache/docs/{picture}"))).width >= 400
    for language in set(build.LANGUAGES) - {"en"}:  # where the frontend looks first
        assert f"]({picture})" in server.bytes(f"/extensions/hetcache/docs/{name}/{language}.md").decode()


def test_fine_settings_are_folded_away(nodes):
    inputs = nodes["HetCachePolicySettings"]["input"]
    assert inputs["required"]["speed"][1]["display"] == "slider"
    assert all(options.get("advanced") for _, options in inputs["optional"].values())


def test_the_numbers_of_a_mask_are_told_before_a_run(server, inputs):
    told = server.get("/hetcache/mask?file=your%20mask.mp4&threshold=0.5&frame_cap=5")
    assert told["frames"] == 5 and told["width"] > 0 and 0 < told["share"] <= 1
    assert "no such file" in server.get("/hetcache/mask?file=gone.mp4")["error"]
    for wrong in ("file=../log.txt", "file=your%20mask.mp4&grow=9999"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            server.get(f"/hetcache/mask?{wrong}")


def test_templates_are_listed_and_served(server):
    assert sorted(server.get("/workflow_templates")["hetcache"]) == WORKFLOWS
    for name in WORKFLOWS:
        path = f"/api/workflow_templates/hetcache/{name}"
        assert server.get(f"{path}.json") == json.loads((ROOT / "workflows" / f"{name}.json").read_text())
        picture = server.bytes(f"{path}.jpg")
        assert len(picture) < 60_000 and Image.open(io.BytesIO(picture)).format == "JPEG"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_node_of_a_workflow_is_known(nodes, name):
    editor = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    assert {node["class_type"] for node in workflow(name).values()} <= set(nodes)
    assert {node["type"] for node in editor["nodes"]} <= {*nodes, "MarkdownNote"}


def test_workflows_are_what_their_description_gives(server, nodes):
    from workflows.build import files

    version = server.get("/system_stats")["system"]["comfyui_version"]
    built_on = json.loads((ROOT / "workflows" / f"{WORKFLOWS[0]}.json").read_text())["nodes"]
    if version not in {node["properties"].get("ver") for node in built_on}:
        pytest.skip(f"the committed workflows were written for another ComfyUI than {version}")
    for path, text in files(nodes, version).items():
        assert path.read_text() == text, f"{path.name}: run python -m workflows.build"


# ---- the workflows for real models


@pytest.mark.parametrize("name", REAL)
def test_only_the_models_are_missing(server, inputs, name):
    refused = server.post("/prompt", {"prompt": workflow(name)})
    errors = [error for node in refused["node_errors"].values() for error in node["errors"]]
    missing = {error["extra_info"]["received_value"] for error in errors}
    assert {error["type"] for error in errors} == {"value_not_in_list"}
    assert missing and all(value.endswith(".safetensors") for value in missing)


@pytest.mark.parametrize("name", REAL)
def test_a_workflow_for_real_models_runs_on_nano(server, inputs, name):
    inputs()
    prompt = workflow(name)
    demo = {"class_type": "HetCacheDemoModel", "inputs": {"colour": "red", "shape": "star"}}
    prompt = {id_: node for id_, node in prompt.items() if not node["class_type"].startswith("CLIP")} | {"demo": demo}
    find(prompt, "UNETLoader")[1].update(weight_dtype="default")
    find(prompt, "ImageFromBatch")[1].update(length=9)
    find(prompt, "ImageScale")[1].update(width=128, height=96)
    find(prompt, "HetCacheLoadMaskVideo")[1].update(grow=0)
    find(prompt, "WanVaceToVideo")[1].update(positive=["demo", 2], negative=["demo", 3])
    for sampler in (node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler"):
        sampler.update(steps=min(sampler["steps"], 10))
    outcome = server.run(prompt)
    assert outcome.end["type"] == "execution_success", outcome.end
    assert "x measured" in report_of(prompt, outcome)
    assert video_of(server, outcome, "HetCache_0") == (9, 128, 96)
    compared = [node for node in prompt.values() if node["class_type"] == "HetCacheCompare"]
    assert len(compared) == ("compare" in name)
    if compared:  # without HetCache beside with it, and where they differ
        (report,) = outcome.outputs[find(prompt, "HetCacheCompare")[0]]["text"]
        assert "dB" in report and "equal" not in report
        frames, width, height = video_of(server, outcome, "HetCache_compare")
        assert (frames, width) == (9, 3 * 128) and height >= 96


# ---- the nano demo


def video_of(server: Server, outcome, begins: str = "") -> tuple[int, int, int]:
    """Frames, width and height of the only video of such a name among the results in the output folder."""
    files = [file for shown in outcome.outputs.values() for file in shown.get("images", ())]
    (name,) = [f["filename"] for f in files if f["type"] == "output" and f["filename"].endswith(".mp4")
               and f["filename"].startswith(begins)]  # fmt: skip
    with av.open(str(next((server.folder / "output").rglob(name)))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return len(frames), frames[0].shape[1], frames[0].shape[0]


def test_the_nano_demo_runs_to_a_video(server):
    prompt = small_demo()
    outcome = server.run(prompt)
    assert outcome.end["type"] == "execution_success", outcome.end
    assert video_of(server, outcome) == (FRAMES, 384, 192)
    steps = [event["data"]["value"] for event in outcome.events if event["type"] == "progress"
             and event["data"]["node"] == find(prompt, "KSampler")[0]]  # fmt: skip
    assert steps and steps[-1] == STEPS
    shown = outcome.outputs[find(prompt, "HetCacheStats")[0]]
    assert shown["text"][0].startswith(f"{STEPS} evaluations") and "x measured" in shown["text"][0]
    (picture,) = shown["images"]
    assert Image.open(next((server.folder / "temp").rglob(picture["filename"]))).size[0] > 300
    assert outcome.outputs[find(prompt, "PreviewAny")[0]]["text"][0] == shown["text"][0]


def test_another_seed_gives_fresh_numbers(server):
    first, second = small_demo(), small_demo()
    find(second, "KSampler")[1]["seed"] += 1
    before, after = server.run(first), server.run(second)
    assert find(second, "HetCacheDemoModel")[0] in after.cached
    for outcome in (before, after):
        (run,) = json.loads(outcome.outputs["numbers"]["text"][0])["runs"]
        assert len(run["decisions"]) == STEPS
    assert before.outputs["numbers"] != after.outputs["numbers"]  # the seconds alone are never the same
    assert not torch.equal(saved(server, before), saved(server, after))


def test_bypassed_it_gives_the_stock_bytes(server):
    fast = saved(server, server.run(small_demo()))
    stock = bypassed(small_demo())
    outcome = server.run(stock)
    assert outcome.end["type"] == "execution_success", outcome.end
    assert "bypassed" in report_of(stock, outcome)
    exact = saved(server, server.run(small_demo(speed=1.0)))
    again = bypassed(small_demo())  # the same, but sampled anew with the model that has just been patched
    sampler = find(again, "KSampler")[1]
    again["same"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": sampler["latent_image"], "amount": 1}}
    sampler["latent_image"] = ["same", 0]
    outcome_again = server.run(again)
    assert find(again, "HetCacheDemoModel")[0] in outcome_again.cached
    assert find(again, "KSampler")[0] not in outcome_again.cached
    assert torch.equal(saved(server, outcome), saved(server, outcome_again))
    assert torch.equal(saved(server, outcome), exact)
    assert not torch.equal(saved(server, outcome), fast)


def test_an_error_is_told_and_the_server_lives_on(server):
    wrong = small_demo(schedule="FFX")
    outcome = server.run(wrong)
    assert outcome.end["type"] == "execution_error"
    assert outcome.end["data"]["node_id"] == find(wrong, "HetCachePolicySettings")[0]
    message = outcome.end["data"]["exception_message"]
    assert message.startswith("Cache Policy Settings: ") and "FFX" in message and "Correct it" in message
    outcome = server.run(small_demo(profile="mine.json"))
    assert outcome.end["data"]["node_id"] == find(wrong, "HetCachePolicySettings")[0]
    assert "no error profile 'mine.json'" in outcome.end["data"]["exception_message"]
    refused = server.post("/prompt", {"prompt": small_demo(speed=99.0)})
    (error,) = refused["node_errors"][find(wrong, "HetCachePolicySettings")[0]]["errors"]
    assert error["type"] == "value_bigger_than_max"
    assert server.run(small_demo()).end["type"] == "execution_success"
