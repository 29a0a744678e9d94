"""Where ComfyUI keeps the mask of an edit: given, on the latent, in the VACE control, in the image-to-video input."""

from __future__ import annotations

import comfy.utils
import torch
from torch import Tensor

from ..policy import CachePolicy
from ..tokens import (
    FRAMES_PER_CELL,
    PIXELS_PER_CELL,
    TokenClasses,
    TokenGrid,
    classify,
    pool_latent_mask,
    pool_pixel_mask,
    vace_mask,
)

I2V_CHANNELS = 36  # 16 of noise, 4 of mask (1 = keep), 16 of the image


def token_classes(
    x: Tensor, control: Tensor | None, noise_mask: Tensor | None, mask: Tensor | None, policy: CachePolicy
) -> tuple[TokenClasses | None, str]:
    """Token classes of a run, or None and why there are none.

    Args:
        x: the model's input, ``[B, C, T, H, W]``.
        control: VACE controls, ``[n, 96, T, H, W]``.
        noise_mask: of the latent, in its shape.
        mask: given by the user, pixels ``[F, H, W]``; comes before all others.
        policy: of the run.

    Of a control that masks more than the policy allows, there are both.
    """
    grid, threshold, references, whole = TokenGrid.of_latent(x), policy.mask_threshold, 0, ""
    try:
        found = _denoised(noise_mask, x)
        if control is not None:
            in_control, references = vace_mask(control)
            if found is None:
                found, whole = in_control, _why_whole(control[:, 32:, references:]) if mask is None else ""
        elif found is None and x.shape[1] == I2V_CHANNELS:
            found = 1 - x[:, 16:20].float().amin(dim=(0, 1))
        if mask is not None:
            touched = pool_pixel_mask(*_fitted(mask, x, references), threshold).to(x.device)
            touched = torch.cat([touched.new_zeros(references, *touched.shape[1:]), touched])
        elif found is not None:
            touched = pool_latent_mask(found.to(x.device), grid, threshold)
        else:
            return None, "there is no mask: connect one to HetCache Patch Model"
    except ValueError as error:
        return None, str(error)
    classes = classify(touched, policy.margin_space, policy.margin_time, references)
    return classes, whole if classes.mask_fraction > policy.max_mask_fraction else ""


def _why_whole(masks: Tensor) -> str:
    """Why a run is full where one of its controls, ``[n, 64, T, H, W]``, masks everything, or empty."""
    if not bool((masks > 0.5).flatten(1).all(1).any()):
        return ""
    return (
        "a VACE control masks the whole clip, as one without control_masks does; if only a part is edited, connect its "
        "mask to HetCache Patch Model"
    )


def _denoised(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The latent's noise mask ``[T, H, W]``; None where there is none or it lets everything change."""
    if mask is None or tuple(mask.shape[-3:]) != tuple(x.shape[-3:]) or bool((mask > 0.5).all()):
        return None
    return mask.float().flatten(0, -4).amax(0)


def _fitted(mask: Tensor, x: Tensor, references: int) -> tuple[Tensor, TokenGrid]:
    """A pixel mask scaled and cut as WanVaceToVideo does it, and the clip's grid without reference frames.

    Frames that a mask is too short for are generated there, so they are here; a single frame serves all.
    """
    frames, height, width = x.shape[-3] - references, *x.shape[-2:]
    grid = TokenGrid.of_latent(x[..., references:, :, :])
    wanted = (frames - 1) * FRAMES_PER_CELL + 1
    mask = mask if mask.ndim == 3 else mask.reshape(-1, *mask.shape[-2:])
    size = (width * PIXELS_PER_CELL, height * PIXELS_PER_CELL)
    mask = comfy.utils.common_upscale(mask[:wanted, None].float(), *size, "bilinear", "center")[:, 0]
    if 1 < len(mask) < wanted:
        mask = torch.cat([mask, mask.new_ones(wanted - len(mask), *mask.shape[1:])])
    return mask, grid
