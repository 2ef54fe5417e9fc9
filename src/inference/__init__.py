"""From weights to logits to tokens to text.

Flow: `prepare` (packed or quantized weights) -> `model_runner` (prefill, decode, rollback) ->
`sampling` (logits to a token) -> `detokenizer` (tokens to text, stop strings).
Start with: `model_runner`; `beam_search` and `speculative` are other ways through it.
Rule: does not know `train`; the front door is `generation`.
"""
