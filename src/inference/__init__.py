"""Inference: weights to logits to tokens to text.

Flow: `requests` (prompt and options to a `sequence`) -> `scheduler` (which tokens next) ->
`model_runner` (prefill, decode, rollback) -> `logits_processors` -> `sampling` (parameters,
sampler) -> `detokenizer` (tokens to text, stop strings); `engine` is the loop. `prepare` packs the
weights and chooses the decode backend: CPU kernels, `cuda_graph` or PyTorch.
Start with: `engine`; `beam_search` (`beam_text`) and `speculative` use the model runner directly.
Rule: must not import `train`; the public API is `generation`.
"""
