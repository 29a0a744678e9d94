"""The workflows themselves. `python -m workflows.build` writes them as the JSON files of this folder.

A node is added with its inputs, settings as they are and links as `node["output"]`; what is not given has its default.
"""

_REPACKAGED = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
VACE = "wan2.1_vace_14B_fp16.safetensors"
TEXT = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
CAUSVID = "Wan21_CausVid_14B_T2V_lora_rank32.safetensors"

MODELS = {  # what the editor offers to download, and the notes list
    VACE: {"url": f"{_REPACKAGED}/diffusion_models/{VACE}", "directory": "diffusion_models"},
    TEXT: {"url": f"{_REPACKAGED}/text_encoders/{TEXT}", "directory": "text_encoders"},
    VAE: {"url": f"{_REPACKAGED}/vae/{VAE}", "directory": "vae"},
    CAUSVID: {"url": f"https://huggingface.co/Kijai/WanVideo_comfy/resolve/main/{CAUSVID}", "directory": "loras"},
}
CLIP_FILE, MASK_FILE, IMAGE_FILE = "your clip.mp4", "your mask.mp4", "your reference.png"  # for the user to replace
GREY = 0x808080  # what VACE takes for "make this anew"
SEED = 42

SPEED_NOTE = """
**speed** in *Cache Policy Settings* is the one setting that matters.

- **1**: everything is computed. The very same result as without HetCache.
{}

That is what the demo model shows; no real Wan has been measured yet.
"""
JUDGE = """
Judge it on your own clip: the workflow *hetcache_vace_compare* makes an edit with HetCache and without, and measures
the difference.
"""
MANY_STEPS = """
- **2**: hard to tell from it.
- **3**: where to start.
- **4** and more: fine detail inside the mask changes.
"""
FEW_STEPS = """
- **1.8**: where to start.
- **2** and more: fine detail inside the mask may change. More than about 2.2 is out of reach here, unless the mask is
  small. *Cache Stats* says what was reached.
"""

STATS_NOTE = """
*Cache Stats* shows what was gained, in words below and as a picture:

- **measured speed**: against the time of the steps that were computed in full
- **a bar for every step**: F computed in full, P only the masked region, R nothing (a forecast)
- **the frame**: what counted as masked
- **why not faster**, where that is so
"""


def nano_demo(g) -> None:
    """The pack in a minute: model, clip and mask come with it."""
    g.group("Start here", 340)
    g.note("Note: try HetCache", """
## HetCache in a minute

Press **Run**. Nothing has to be downloaded: *HetCache Demo Model* brings a toy model, a clip and a moving mask, and
runs on any computer.

It paints a coloured shape where the mask is, in about a minute without a graphics card. The video at the right shows
the clip and, beside it, the edit.

Green nodes are HetCache, the others come with ComfyUI. In your own workflow you need just two of them:
*HetCache Patch Model* before the sampler, and *Cache Stats* after it.

The toy model is for trying things out. Its pictures say nothing about those of the real Wan2.1-VACE.
""", 320)  # fmt: skip
    g.group("Clip, mask, model", 300)
    demo = g.add("HetCacheDemoModel", colour="red", shape="star")
    grey = g.add("EmptyImage", "Grey", width=192, height=192, color=GREY)
    hidden = g.add("ImageCompositeMasked", "Clip, grey in the mask", destination=demo["video"], source=grey["IMAGE"],
                   mask=demo["mask"], resize_source=True)  # fmt: skip
    vace = g.add("WanVaceToVideo", positive=demo["positive"], negative=demo["negative"], vae=demo["vae"], width=192,
                 height=192, length=33, control_video=hidden["IMAGE"], control_masks=demo["mask"])  # fmt: skip
    g.group("How fast", 320)
    patched = _speed(g, demo["model"], MANY_STEPS, JUDGE, speed=3.0)
    g.group("Sample", 320)
    sampled = g.add("KSampler", model=patched["model"], positive=vace["positive"], negative=vace["negative"],
                    latent_image=vace["latent"], seed=SEED, steps=30, cfg=4.0, sampler_name="euler",
                    scheduler="simple")  # fmt: skip
    trimmed = g.add("TrimVideoLatent", samples=sampled["LATENT"], trim_amount=vace["trim_latent"])
    decoded = _stats(g, trimmed, patched, demo["video"], demo["vae"])
    both = g.add("ImageStitch", "Clip and edit, side by side", image1=demo["video"], image2=decoded["IMAGE"])
    video = g.add("CreateVideo", images=both["IMAGE"], fps=25.0)
    g.add("SaveVideo", tall=400, video=video["VIDEO"], filename_prefix="video/HetCache_demo")


def vace_inpainting(g) -> None:
    """A masked edit with the real model, at its usual number of steps."""
    _edit(g, "Masked edit with Wan2.1-VACE", """
The prompt says what the whole clip shows *after* the edit. What is white in the mask is made anew, the rest is kept.
""", speed=3.0, steps=30, cfg=6.0)  # fmt: skip


def vace_inpainting_6_steps(g) -> None:
    """The same with a distilled LoRA, where there are few steps to save."""
    _edit(g, "Masked edit in 6 steps", """
As the workflow *hetcache_vace_inpainting*, with the CausVid LoRA: 6 steps, cfg 1. A lightx2v LoRA for Wan2.1 T2V 14B
can take its place, at strength 1.

With so few steps hardly one can be left out, so **speed** is 1.8 here: HetCache limits some steps to the masked
region, and skips only those that remove very little noise. The smaller the mask, the more that saves.
""", speed=1.8, steps=6, cfg=1.0, lora=True, files=(VACE, CAUSVID, TEXT, VAE))  # fmt: skip


def vace_reference(g) -> None:
    """Object replacement: what is masked becomes what the reference image shows."""
    _edit(g, "Replace an object", """
Mask an object, and give an image of what should be there instead: one thing on a plain background. Say in the prompt
what it is and what it does. Widen the mask (**grow**) if the new thing is larger than the old one.
""", speed=2.5, steps=30, cfg=6.0, reference=True)  # fmt: skip


def vace_compare(g) -> None:
    """What a speed costs: the same edit with and without HetCache, measured."""
    _edit(g, "Judge a speed on your own clip", """
Makes the same edit twice, with HetCache and without, shows both and their difference, and measures it inside the mask,
around it and outside. Change **speed** and run again: only the edit with HetCache is made anew.
""", speed=3.0, steps=30, cfg=6.0, compare=True)  # fmt: skip


def _edit(g, title: str, about: str, speed: float, steps: int, cfg: float, lora: bool = False, reference: bool = False,
          compare: bool = False, files: tuple[str, ...] = (VACE, TEXT, VAE), **policy) -> None:  # fmt: skip
    """A masked edit of the user's clip with Wan2.1-VACE 14B."""
    links = {name: f"[{name}]({MODELS[name]['url']})" for name in files}
    listed = "\n".join(f"- {links[name]} into **models/{MODELS[name]['directory']}**" for name in files)
    g.group("Start here", 380)
    g.note("Note: what this does", f"""
## {title}, faster with HetCache

{about.strip()}

1. Choose your clip in *Load Video*{", an image in *Load Image*" if reference else ""}, and its mask in
   *Load Mask Video*: a video as long as the clip, or a single image for all of it. Any other MASK of as many frames can
   take its place, from SAM3 for example.
2. Write the prompt.
3. **Run**.
""", 440 if lora else 320)  # fmt: skip
    g.note("Note: files", f"""
## Files to download

{listed}

Below 24 GB of graphics memory, lower width and height in *Upscale Image*, in steps of 16 (640 x 352), or use
*wan2.1_vace_1.3B_fp16.safetensors*{", with its own LoRA" if lora else ""}.

**memory_budget_mb** is 2048, which is safe on any card. For the 14B model at 81 frames 8192 and more keep the edit
better tied to its surroundings: raise it as far as your card allows, or turn on **memory_offload**.
""", 400 if lora else 360)  # fmt: skip

    g.group("Model", 380)
    model = g.add("UNETLoader", unet_name=VACE, weight_dtype="fp8_e4m3fn")
    if lora:
        model = g.add("LoraLoaderModelOnly", model=model["MODEL"], lora_name=CAUSVID, strength_model=0.3)
    model = g.add("ModelSamplingSD3", model=model["MODEL"], shift=5.0)
    text = g.add("CLIPLoader", clip_name=TEXT, type="wan")
    vae = g.add("VAELoader", vae_name=VAE)
    g.group("Prompt", below=True)
    positive = g.add("CLIPTextEncode", "What the clip shows after the edit", 130, clip=text["CLIP"], text="")
    negative = g.add("CLIPTextEncode", "What to avoid", 100, clip=text["CLIP"],
                     text="blurry, washed out, static, deformed, text, watermark, low quality")  # fmt: skip

    g.group("Clip", 320)
    file = g.add("LoadVideo", tall=300, file=CLIP_FILE)
    parts = g.add("GetVideoComponents", video=file["VIDEO"])
    short = g.add("ImageFromBatch", "First 81 frames", image=parts["images"], length=81)
    clip = g.add("ImageScale", image=short["IMAGE"], upscale_method="lanczos", width=832, height=480, crop="center")
    size = g.add("GetImageSize", image=clip["IMAGE"])

    g.group("Mask", 320)
    mask = g.add("HetCacheLoadMaskVideo", tall=620, file=MASK_FILE, grow=16, images=clip["IMAGE"])
    grey = g.add("EmptyImage", "Grey", width=64, height=64, color=GREY)
    hidden = g.add("ImageCompositeMasked", "Clip, grey in the mask", destination=clip["IMAGE"], source=grey["IMAGE"],
                   mask=mask["mask"], resize_source=True)  # fmt: skip
    given = {}
    if reference:
        g.group("Reference", below=True)
        given["reference_image"] = g.add("LoadImage", tall=320, image=IMAGE_FILE)["IMAGE"]

    g.group("How fast", 340)
    advice = (FEW_STEPS if lora else MANY_STEPS), ("" if compare else JUDGE)
    patched = _speed(g, model["MODEL"], *advice, speed=speed, **policy)

    g.group("Sample", 340)
    vace = g.add("WanVaceToVideo", positive=positive["CONDITIONING"], negative=negative["CONDITIONING"], vae=vae["VAE"],
                 control_video=hidden["IMAGE"], control_masks=mask["mask"], width=size["width"], height=size["height"],
                 length=size["batch_size"], **given)  # fmt: skip
    settings = {name: vace[name] for name in ("positive", "negative")} | {
        "latent_image": vace["latent"], "seed": SEED, "steps": steps, "cfg": cfg, "sampler_name": "uni_pc",
        "scheduler": "simple",
    }  # fmt: skip
    sampled = g.add("KSampler", model=patched["model"], **settings)
    trimmed = g.add("TrimVideoLatent", samples=sampled["LATENT"], trim_amount=vace["trim_latent"])
    if compare:
        g.group("Sample without HetCache", below=True)
        sampled = g.add("KSampler", "Without HetCache", model=model["MODEL"], **settings)
        whole = g.add("TrimVideoLatent", samples=sampled["LATENT"], trim_amount=vace["trim_latent"])
        before = g.add("VAEDecode", samples=whole["LATENT"], vae=vae["VAE"])
    decoded = _stats(g, trimmed, patched, clip["IMAGE"], vae["VAE"])
    video = g.add("CreateVideo", images=decoded["IMAGE"], fps=parts["fps"], audio=parts["audio"])
    g.add("SaveVideo", tall=400, video=video["VIDEO"], filename_prefix="video/HetCache")
    if compare:
        g.group("What it cost", 480)
        compared = g.add("HetCacheCompare", tall=420, before=before["IMAGE"], after=decoded["IMAGE"], mask=mask["mask"])
        g.add("PreviewAny", "Report", 240, source=compared["report"])
        video = g.add("CreateVideo", images=compared["frames"], fps=parts["fps"])
        g.add("SaveVideo", tall=400, video=video["VIDEO"], filename_prefix="video/HetCache_compare")


def _speed(g, model, advice: str, judge: str, **policy):
    """The patched model."""
    settings = g.add("HetCachePolicySettings", tall=800, **policy)
    patched = g.add("HetCachePatchModel", tall=400, model=model, policy=settings["policy"])
    g.note("Note: speed", SPEED_NOTE.format(advice.strip()) + judge, 280)
    return patched


def _stats(g, latent, patched, clip, vae):
    """The decoded result, by way of the numbers."""
    g.group("What was gained", 420)
    stats = g.add("HetCacheStats", tall=910, stats=patched["stats"], latent=latent["LATENT"], video=clip)
    g.add("PreviewAny", "Report", 240, source=stats["report"])
    g.note("Note: the numbers", STATS_NOTE, 200)
    g.group("Result", 480)
    return g.add("VAEDecode", samples=stats["latent"], vae=vae)


GRAPHS = {
    "hetcache_nano_demo": nano_demo,
    "hetcache_vace_inpainting": vace_inpainting,
    "hetcache_vace_inpainting_6_steps": vace_inpainting_6_steps,
    "hetcache_vace_reference": vace_reference,
    "hetcache_vace_compare": vace_compare,
}
