"""Starts ComfyUI's server."""

import os
import runpy
import sys

from torchvision_operators import provide

provide()
os.chdir(os.environ["COMFYUI_PATH"])
sys.path[0] = os.getcwd()  # in place of this file's folder
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
