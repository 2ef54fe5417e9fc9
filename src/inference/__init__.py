"""Inference: weights to logits to tokens to text.

Flow: `prepare` (packed or quantized weights) -> `model_runner` (prefill, decode, rollback) ->
`sampling` (logits processors, sampler) -> `detokenizer` (tokens to text, stop strings).
Start with: `model_runner`; `beam_search` and `speculative` are alternatives to sampling.
Rule: must not import `train`; the public API is `generation`.
"""
