"""Layers and kernels below the model: dropout, the KV cache, LoRA, and the compiled CPU kernels.

Flow: tensors in, tensors out; no configuration and no file.
Start with: `kv_cache` for what a decode step keeps, `cpu_kernels` for how one runs in C.
Rule: knows only arguments and errors, and nothing else loads compiled code.
"""
