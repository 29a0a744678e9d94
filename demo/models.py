"""The model that makes the edit: nano, or a diffusers Wan-VACE folder on disk, inside its stock pipeline."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import WanVACEPipeline
from diffusers.utils import logging

from demo.errors import InputError
from hetcache_core import CachePolicy
from hetcache_core.hosts import diffusers as host
from hetcache_core.stats import RunStats


@dataclass(frozen=True)
class Model:
    """A stock WanVACEPipeline, ready to run, and the prompt as its text embeddings."""

    name: str
    pipe: WanVACEPipeline
    prompt: torch.Tensor  # [1, words, 4096]
    negative: torch.Tensor  # the same for the unconditional stream


def load_nano(prompt: str) -> Model:
    """The model this repository ships; prompts are a colour and a shape, such as 'red circle'."""
    import nano
    from nano import text

    try:
        embeds = text.encode(prompt)
    except ValueError as error:
        raise InputError(f"--prompt: {error}.") from error
    try:
        pipe = nano.load_pipeline()
    except FileNotFoundError as error:
        raise InputError(f"{error}.") from error
    return Model("nano", _quiet(pipe), embeds, text.encode(""))


def load_folder(folder: str | Path, prompt: str, negative: str = "") -> Model:
    """Any diffusers Wan-VACE pipeline on disk. Nothing is downloaded; the text goes through its own encoder."""
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"--model {folder}: no model_index.json there; give a folder saved by a WanVACEPipeline.")
    logging.disable_progress_bar()
    # CPUs without bfloat16 units are many times slower in it. The text encoder runs but once, and is the largest part.
    device, fast = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    dtypes = {"vae": torch.float32, "text_encoder": torch.bfloat16, "default": fast}
    try:
        with warnings.catch_warnings():  # newer versions would rather have `dtype`, which older ones do not know
            warnings.simplefilter("ignore", FutureWarning)
            pipe = WanVACEPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=dtypes)
    except Exception as error:  # a folder can be wrong in many ways; whichever it is, it is the folder that is wrong
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"--model {folder}: cannot be loaded as a WanVACEPipeline ({reason}).") from error
    pipe.text_encoder.to(device)
    with torch.no_grad():
        embeds = pipe.encode_prompt(prompt, negative, device=device)
    pipe.text_encoder = None  # it has done its work, and is larger than the rest
    return Model(folder.resolve().name, _quiet(pipe.to(device)), *embeds)


def _quiet(pipe: WanVACEPipeline) -> WanVACEPipeline:
    logging.set_verbosity_error()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Edit:
    """What to edit and how, the same for every run."""

    clip: np.ndarray  # [F, H, W, 3] uint8
    mask: np.ndarray  # [F, H, W] bool
    cfg: float
    seed: int

    def sample(
        self,
        model: Model,
        steps: int,
        policy: CachePolicy | None,
        progress: Callable[[], object] = lambda: None,
        decode: bool = True,
    ) -> tuple[np.ndarray, RunStats | None]:
        """Make the edit once.

        Args:
            model: what to make it with.
            steps: denoising steps.
            policy: how to cache; a speed of 1 computes everything and is timed the same way. None leaves the model
                alone.
            progress: called without arguments after every step.
            decode: whether pixels are wanted.

        Returns:
            The edited clip `[F, H, W, 3]` float32 from 0 to 1 (its latents when not decoded), and the stats of the run.
        """
        frames, height, width = self.mask.shape
        # VACE wants the region to generate grey. Floats, because no 8-bit grey is exactly the model's zero.
        video = np.where(self.mask[..., None], 0.5, self.clip / 255).astype(np.float32)

        def after_step(pipe, step, timestep, kwargs):
            progress()
            return {}

        # The host would find the mask in the control latents too, but there only one frame in four is to be seen.
        known = {"mask": torch.from_numpy(self.mask), "streams": 2 if self.cfg > 1 else 1}
        patch = nullcontext() if policy is None else host.apply(model.pipe, policy, **known)
        with patch as handle:
            result = model.pipe(
                video=video[None],
                mask=self.mask[None, ..., None].astype(np.float32),
                height=height,
                width=width,
                num_frames=frames,
                num_inference_steps=steps,
                guidance_scale=self.cfg,
                generator=torch.Generator().manual_seed(self.seed),
                prompt_embeds=model.prompt,
                negative_prompt_embeds=model.negative,
                callback_on_step_end=after_step,
                output_type="np" if decode else "latent",
            )
            return result.frames[0], handle.stats if handle else None


@contextmanager
def encoded_once(pipe: WanVACEPipeline) -> Iterator[None]:
    """Within this block the pipeline encodes its clip on the first call only: every run edits the same one."""
    encode, kept = pipe.prepare_video_latents, []

    def prepare_video_latents(*args, **kwargs):
        if not kept:
            kept.append(encode(*args, **kwargs))
        return kept[0]

    pipe.prepare_video_latents = prepare_video_latents
    try:
        yield
    finally:
        del pipe.prepare_video_latents
