"""Training: batches to gradients to weights, which can be interrupted and resumed exactly.

Flow: `setup` (text, tokenizer, model) -> `trainer` -> `step` (loss, gradients, update) ->
`optimizer`; next to it `state`, `checkpoint`, `metrics`, `trackers` and `distributed`.
Start with: `trainer.Trainer.fit`, then `step.accumulate_gradients`.
Rule: must not import `inference` or `evaluation`: `evaluate` and `sample` are passed to `Trainer`.
"""
