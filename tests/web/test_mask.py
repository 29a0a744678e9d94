"""Load Mask Video in a real browser: upload, drag and drop, the preview that plays, and the numbers."""

import base64
import json

import av
import pytest
from PIL import Image

from demo.masks import moving_mask
from tests.hosts.comfyui_host import ROOT

FRAMES = 9
PLAYING = "[...document.querySelectorAll('video')].some((v) => v.src.includes('mask_') && v.readyState >= 2)"


@pytest.fixture
def mask_file(tmp_path, request):
    """A video of a mask that is missing in its last four frames, under a name that no other test has."""
    path = tmp_path / f"my {request.node.callspec.id} mask.mp4"
    mask = moving_mask(FRAMES, 96, 96)
    mask[5:] = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for plane in mask:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plane.astype("uint8") * 255, format="gray")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def with_mask(editor):
    """The demo with its clip going through Load Mask Video, whose mask is looked at."""
    editor.js("""(() => {
        const add = (type, x, y) => { const node = LiteGraph.createNode(type); app.graph.add(node);
            node.pos = [x, y]; return node; };
        const mask = add('HetCacheLoadMaskVideo', 0, 1200), preview = add('MaskPreview', 500, 1200);
        const slot = (node, name) => node.inputs.findIndex((input) => input.name === name);
        HET.node('HetCacheDemoModel').connect(4, mask, slot(mask, 'images'));
        mask.connect(0, preview, slot(preview, 'mask'));
        app.graph.remove(HET.node('HetCacheStats'));
        app.graph.remove(HET.node('PreviewAny'));
    })()""")
    editor.look_at("HetCacheLoadMaskVideo")
    return editor


def drop(editor, path, kind: str = "video/mp4", times: int = 1) -> None:
    """Let a file fall on the node, as the browser tells the host, or several at once."""
    data = base64.b64encode(path.read_bytes()).decode()
    editor.page.evaluate("""async ([data, name, type, times]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        for (let i = 0; i < times; i++) transfer.items.add(new File([bytes], i + name, { type }));
        const node = HET.node('HetCacheLoadMaskVideo');
        const event = new DragEvent('drop', { dataTransfer: transfer });
        if (!node.onDragOver?.(event)) throw new Error('the node takes no files');
        if (!await node.onDragDrop(event)) throw new Error('the node did not take the file');
    }""", [data, path.name, kind, times])  # fmt: skip


@pytest.mark.parametrize("way", ["upload", "drop"])
def test_a_mask_is_taken_in_and_its_numbers_are_shown(with_mask, mask_file, way):
    with_mask.until("HET.panel('hetcache_mask').dataset.looking === undefined")
    if way == "drop":
        drop(with_mask, mask_file)
    else:
        with with_mask.page.expect_file_chooser() as chooser:
            with_mask.js("void HET.node('HetCacheLoadMaskVideo').widgets.find((w) => w.name === 'upload').callback()")
        chooser.value.set_files(mask_file)
    with_mask.until("HET.widget('HetCacheLoadMaskVideo', 'file').value.includes('my ')")
    with_mask.comes_to("hetcache_mask", "file")  # before any run
    with_mask.until(f"HET.panel('hetcache_mask').dataset.frames === '{FRAMES}'")
    text = with_mask.text("hetcache_mask")
    assert f"{FRAMES} at 16 fps" in text and "96×96" in text and f"{FRAMES - 5} frames" in text
    assert "As the file has it" in text
    with_mask.picture(f"7-mask-{way}-before-a-run")
    with_mask.run()
    with_mask.comes_to("hetcache_mask", "known")
    with_mask.finished()
    text = with_mask.text("hetcache_mask")
    history = with_mask.server.get("/history?max_items=1")
    (outputs,) = (entry["outputs"] for entry in history.values())
    (told,) = (shown["hetcache_mask"][0] for shown in outputs.values() if "hetcache_mask" in shown)
    assert told["frames"] == 33 and (told["width"], told["height"]) == (192, 192)  # as the clip
    assert told["longest_unmasked"] == 33 - 5 and f"{told['longest_unmasked']} frames" in text
    assert "33 at 16 fps" in text and "192×192" in text and 0 < told["share"] < 1
    assert "More than half" in text
    with_mask.until(PLAYING)
    with_mask.picture(f"7-mask-{way}")
    with_mask.set("HetCacheLoadMaskVideo", "skip_frames", 1)
    with_mask.comes_to("hetcache_mask", "file")
    with_mask.load(with_mask.js("app.graph.serialize()"))
    with_mask.settle()  # what the run gave is of other settings
    with_mask.comes_to("hetcache_mask", "file")
    assert with_mask.js("HET.panel('hetcache_mask').dataset.frames") == str(FRAMES - 1)


def test_the_numbers_follow_the_settings_and_say_what_is_wrong(with_mask, mask_file):
    drop(with_mask, mask_file)
    with_mask.until(f"HET.panel('hetcache_mask').dataset.frames === '{FRAMES}'")
    with_mask.set("HetCacheLoadMaskVideo", "skip_frames", 5)
    with_mask.until("HET.panel('hetcache_mask').textContent.includes('The mask is empty')")
    with_mask.set("HetCacheLoadMaskVideo", "channel", "alpha")
    with_mask.comes_to("hetcache_mask", "error")
    assert "no alpha channel. Choose luma" in with_mask.text("hetcache_mask")
    for theme in ("light", "dark"):
        with_mask.setting("Comfy.ColorPalette", theme)
        is_dark = str(theme == "dark").lower()
        with_mask.until(f"document.documentElement.classList.contains('dark-theme') === {is_dark}")
        assert with_mask.js("HET.faint('hetcache_mask')") == []
    with_mask.page.route("**/hetcache/mask?*", lambda route: route.fulfill(status=404, body="no such route"))
    try:
        with_mask.set("HetCacheLoadMaskVideo", "channel", "luma")
        with_mask.until("HET.panel('hetcache_mask').textContent.includes('cannot look at this mask (404)')")
    finally:
        with_mask.page.unroute("**/hetcache/mask?*")


def test_a_still_image_may_be_dropped_too(with_mask, tmp_path, request):
    path = tmp_path / f"still {request.node.callspec.id}.png"
    Image.fromarray(moving_mask(1, 64, 80)[0].astype("uint8") * 255).save(path)
    drop(with_mask, path, "image/png")
    with_mask.until("HET.widget('HetCacheLoadMaskVideo', 'file').value.includes('still ')")
    with_mask.comes_to("hetcache_mask", "file")
    text = with_mask.text("hetcache_mask")
    assert "1, for every frame" in text and "80×64" in text
    if with_mask.nodes2:  # shown as what it is; a video of it would fail to load
        with_mask.until("[...document.querySelectorAll('img')].some((i) => i.src.includes('still') && i.naturalWidth)")
    else:
        with_mask.until("HET.node('HetCacheLoadMaskVideo').imgs?.length === 1")
    with_mask.picture("7-mask-still-before-a-run")
    with_mask.run()
    with_mask.comes_to("hetcache_mask", "known")
    with_mask.finished()
    assert "33 at 16 fps" in with_mask.text("hetcache_mask")
    with_mask.until(PLAYING)
    with_mask.picture("7-mask-still")


def test_a_still_image_serves_every_frame_of_a_clip_only(with_mask, tmp_path):
    """Without one the mask has a single frame, and what comes after takes the others for masked throughout."""
    path = tmp_path / f"alone {with_mask.nodes2}.png"
    Image.fromarray(moving_mask(1, 64, 80)[0].astype("uint8") * 255).save(path)
    drop(with_mask, path, "image/png", times=2)
    with_mask.until("HET.panel('hetcache_mask').textContent.includes('an image for each frame in a folder')")
    assert "alone" not in with_mask.js("HET.widget('HetCacheLoadMaskVideo', 'file').value")
    drop(with_mask, path, "image/png")
    with_mask.until("HET.panel('hetcache_mask').textContent.includes('1, for every frame')")
    with_mask.js("""(() => {
        const mask = HET.node('HetCacheLoadMaskVideo');
        mask.disconnectInput(mask.inputs.findIndex((input) => input.name === 'images'));
    })()""")
    with_mask.until("HET.panel('hetcache_mask').textContent.includes('1; connect the clip')")
    with_mask.picture("7-mask-still-alone")


def test_an_image_that_cannot_be_uploaded_says_so(with_mask, tmp_path):
    path = tmp_path / "refused.png"
    Image.new("L", (16, 16)).save(path)
    with_mask.page.route("**/upload/image", lambda route: route.fulfill(status=413, body="too large"))
    try:
        drop(with_mask, path, "image/png")
        with_mask.comes_to("hetcache_mask", "error")
        assert "could not be uploaded (413)" in with_mask.text("hetcache_mask")
    finally:
        with_mask.page.unroute("**/upload/image")


def test_the_workflows_for_real_models_have_the_mask_node(editor):
    editor.load(json.loads((ROOT / "workflows" / "hetcache_vace_inpainting.json").read_text()))
    editor.look_at("HetCacheLoadMaskVideo")
    editor.comes_to("hetcache_mask", "error")
    assert "no such file" in editor.text("hetcache_mask") and "Choose, upload or drop" in editor.text("hetcache_mask")
    editor.picture("8-mask-blank")
