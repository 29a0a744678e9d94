"""Load Mask Video: an edit mask out of a video or of images, made to fit the clip it belongs to."""

import logging
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io, ui

from .compat import known
from .mask_files import MaskError, Source, find
from .mask_frames import check
from .mask_ops import LENGTHS, edited, finish, fit_length, numbers
from .mask_video import CHANNELS, decode, write_preview

NO_FILE = "(none)"  # stands in an empty list, which the host could not send


class LoadMaskVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            **known(io.Schema,
                node_id="HetCacheLoadMaskVideo",
                display_name="Load Mask Video",
                category="image/mask",  # where the host keeps the nodes that give masks
                has_intermediate_output=True,  # so that the preview comes again with a cached mask
                search_aliases=["video mask", "import mask", "mask sequence", "alpha video", "matte"],
                description="Load a mask that changes over time: a video, an animated or still image, a folder of "
                "images. White is edited, black is kept. With the clip connected it gets the clip's size and length.",
                inputs=_inputs(),
                outputs=[
                    io.Mask.Output(display_name="mask", tooltip="White (1) where to edit, black (0) where to keep."),
                    io.Int.Output(display_name="frame_count", tooltip="How many frames the mask has."),
                    io.Float.Output(display_name="fps", tooltip="Frames per second of the mask: the frame rate set, or "
                                    "else the file's own (16 for images)."),
                ],
            )
        )  # fmt: skip

    @classmethod
    def execute(cls, file, channel, threshold, invert, grow, feather, images=None, length_policy=LENGTHS[0],
                frame_rate=0.0, skip_frames=0, frame_cap=0, path="") -> io.NodeOutput:  # fmt: skip
        source = source_of(file, path)
        clip_frames = len(images) if images is not None and len(images) > 1 else 0  # one image only gives a size
        cap = min(filter(None, (frame_cap, clip_frames)), default=0)
        bar = comfy.utils.ProgressBar(1)
        frames, fps = decode(source, channel, frame_rate, skip_frames, cap,
                             lambda done, total: bar.update_absolute(done, 2 * total))  # fmt: skip
        size = None if images is None else tuple(images.shape[1:3])
        mask = finish(frames, size, threshold, invert, grow, feather,
                      lambda done, total: bar.update_absolute(total + done, 2 * total))  # fmt: skip
        if clip_frames:
            if 1 < len(mask) < clip_frames:
                logging.info("Load Mask Video: %s has %d of %d frames: %s", source.name, len(mask), clip_frames,
                             length_policy)  # fmt: skip
            mask = fit_length(mask, clip_frames, length_policy, source.name)
        told = {"frames": len(mask), "fps": fps, "width": mask.shape[2], "height": mask.shape[1],
                **numbers(edited(mask))}  # fmt: skip
        told["settings"] = {"file": file, "path": path, "channel": channel, "threshold": threshold, "invert": invert,
                            "grow": grow, "feather": feather, "frame_rate": frame_rate, "skip_frames": skip_frames,
                            "frame_cap": frame_cap}  # fmt: skip
        return io.NodeOutput(mask, len(mask), fps, ui={"hetcache_mask": (told,), **_preview(mask, fps, images)})

    @classmethod
    def validate_inputs(cls, file=None, path="") -> bool | str:
        if file is None or path is None:  # comes from another node, so it is not known yet
            return True
        try:
            check(source_of(file, path))
        except MaskError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file=None, path="", **_) -> str | float:
        if file is None or path is None:
            return float("nan")  # not known here, so always read again
        return source_of(file, path).fingerprint()


def _inputs() -> list:
    folded = {"advanced": True, "optional": True}
    return [
        io.Combo.Input("file", options=_files(), upload=io.UploadType.video,
                       tooltip="The mask: a video, gif or image of the input folder. Drop one here or upload a video. "
                       "With the clip connected to images, a single image is used for every frame."),
        io.Combo.Input("channel", options=list(CHANNELS),
                       tooltip="What counts as mask: brightness (luma), one colour, or transparency (alpha: opaque is "
                       "edited). Alpha needs a file that has it, as ProRes 4444, VP9 in webm, gif or png can."),
        io.Float.Input("threshold", default=0.5, min=0.0, max=1.0, step=0.01,
                       tooltip="What is at least this bright is edited in full, the rest is kept: 0.5 cleans up the "
                       "soft edges of video compression. 0 keeps the greys as a soft mask."),
        io.Boolean.Input("invert", default=False, tooltip="Edit what is black and keep what is white."),
        io.Int.Input("grow", default=0, min=-512, max=512,
                     tooltip="Pixels to widen the mask by on every side, so that the edit covers the old edge too. "
                     "Negative shrinks it."),
        io.Int.Input("feather", default=0, min=0, max=512,
                     tooltip="Pixels over which the mask fades out beyond its edge. Softens the seam; the faded pixels "
                     "are edited as well, so a wide feather costs speed."),
        io.Image.Input("images", optional=True,
                       tooltip="The clip to edit. The mask is cut and scaled to its size as WanVaceToVideo would do "
                       "it, and gets its length; a single image gives only the size. Left out, frames the mask lacks "
                       "are edited whole by WanVaceToVideo."),
        io.Combo.Input("length_policy", **known(io.Combo.Input, options=list(LENGTHS), **folded,
                       tooltip="If the mask is shorter than the clip: hold its last frame, loop it from its start, or "
                       "refuse to run. Frames beyond the clip are dropped.")),
        io.Float.Input("frame_rate", **known(io.Float.Input, default=0.0, min=0.0, max=240.0, step=0.001, **folded,
                       tooltip="Frames per second to bring the mask to, by the frame shown nearest in time. Set it to "
                       "the clip's rate if the two differ. 0 takes every frame of the file once.")),
        io.Int.Input("skip_frames", **known(io.Int.Input, default=0, min=0, max=1_000_000, **folded,
                     tooltip="Frames to leave out at the start, counted after the frame rate is applied.")),
        io.Int.Input("frame_cap", **known(io.Int.Input, default=0, min=0, max=1_000_000, **folded,
                     tooltip="Most frames to load. 0 loads all, or as many as the clip has.")),
        io.String.Input("path", **known(io.String.Input, default="", **folded,
                        tooltip="Instead of the file above: a folder of images, a numbered sequence (mask_%04d.png), a "
                        "wildcard (masks/*.png) or any other file, in the input folder or as a full path.")),
    ]  # fmt: skip


def _files() -> list[str]:
    """What the input folder has to offer, videos first."""
    folder = Path(folder_paths.get_input_directory())
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else []
    found = [name for kind in ("video", "image") for name in folder_paths.filter_files_content_types(names, [kind])]
    return found or [NO_FILE]


def source_of(file: str, path: str) -> Source:
    """What the two inputs stand for; `path` goes first.

    Raises:
        MaskError: there is nothing to read.
    """
    base = Path(folder_paths.get_input_directory())
    if path.strip():
        return find(path, base)
    if file == NO_FILE or not folder_paths.exists_annotated_filepath(file):
        raise MaskError(f"{file}: there is no such file in the input folder. Upload a mask, or choose another one.")
    return find(folder_paths.get_annotated_filepath(file), base, file)


def _preview(mask, fps: float, clip) -> dict:
    """The finished mask as a small video on the node, tinted over the clip where there is one.

    Failing to make one must not stop a run.
    """
    temp = folder_paths.get_temp_directory()
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path("mask", temp)
        video = f"{name}_{counter:05}_.mp4"
        write_preview(str(Path(folder) / video), mask, fps, clip)
    except Exception as error:
        logging.warning(f"Load Mask Video: no preview ({error}).")
        return {}
    return ui.PreviewVideo([ui.SavedResult(video, subfolder, io.FolderType.temp)]).as_dict()
