"""FewStep: few-step solvers and distilled models for ComfyUI."""
