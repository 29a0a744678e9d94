"""Load Mask Video in a real browser: upload, drag and drop, the preview that plays, and the numbers."""

import base64
import json

import av
import pytest

from demo.masks import moving_mask
from tests.hosts.comfyui_host import ROOT

FRAMES = 9


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


def drop(editor, path) -> None:
    """Let a file fall on the node, as the browser tells the host."""
    data = base64.b64encode(path.read_bytes()).decode()
    editor.page.evaluate("""async ([data, name]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name, { type: 'video/mp4' }));
        const node = HET.node('HetCacheLoadMaskVideo');
        const event = new DragEvent('drop', { dataTransfer: transfer });
        if (!node.onDragOver?.(event)) throw new Error('the node takes no files');
        await node.onDragDrop(event);
    }""", [data, path.name])  # fmt: skip


@pytest.mark.parametrize("way", ["upload", "drop"])
def test_a_mask_is_taken_in_and_its_numbers_are_shown(with_mask, mask_file, way):
    assert with_mask.state("hetcache_mask") == "blank"
    if way == "drop":
        drop(with_mask, mask_file)
    else:
        with with_mask.page.expect_file_chooser() as chooser:
            with_mask.js("void HET.node('HetCacheLoadMaskVideo').widgets.find((w) => w.name === 'upload').callback()")
        chooser.value.set_files(mask_file)
    with_mask.until("HET.widget('HetCacheLoadMaskVideo', 'file').value.includes('my ')")
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
    playing = """[...document.querySelectorAll('video')].some((v) => v.src.includes('mask_') && v.readyState >= 2)"""
    with_mask.until(playing)
    with_mask.picture(f"7-mask-{way}")


def test_the_workflows_for_real_models_have_the_mask_node(editor):
    editor.load(json.loads((ROOT / "workflows" / "hetcache_vace_inpainting.json").read_text()))
    editor.look_at("HetCacheLoadMaskVideo")
    assert "Choose, upload or drop" in editor.text("hetcache_mask")
    editor.picture("8-mask-blank")
