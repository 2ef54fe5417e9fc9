"""Layers and kernels below the model: dropout, the KV cache, LoRA, and the compiled CPU kernels.

Flow: tensors in, tensors out; no configuration, no files.
Start with: `kv_cache` for the state of a decode step, `decode_backend` for what computes one,
`cpu_kernels` for how one runs in C; `quantized` has the int8 and int4 weights. Of training:
`linear`, `block_attention`, `recompute`, `heap`.
Rule: imports only `arguments` and `errors`; only this package loads compiled code.
"""
