"""Inference: weights to logits to tokens to text.

Flow: `requests` (prompt and options to a `sequence`) -> `scheduler` (which tokens next) ->
`model_runner` (prefill, decode, rollback) -> `sampling` (logits processors, sampler) ->
`detokenizer` (tokens to text, stop strings); `engine` is the loop; `prepare` is before all.
Start with: `engine`; `beam_search` and `speculative` use the model runner in their own way.
Rule: must not import `train`; the public API is `generation`.
"""
