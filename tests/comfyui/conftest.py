"""Everything in this folder runs inside ComfyUI's own Python; tests/hosts/test_comfyui.py starts it there."""

import os
import pathlib
import sys

sys.path.insert(0, os.environ["COMFYUI_DIR"])  # before the root of this repository: both have `nodes`
sys.path.insert(1, str(pathlib.Path(__file__).parent))
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401 - as the host starts: later another `utils` may stand in its place

torch.set_num_threads(1)
