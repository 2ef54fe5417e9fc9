"""From batches to gradients to weights: a run that can be interrupted and resumed exactly.

Flow: `setup` (text, tokenizer, model) -> `trainer` -> `step` (loss, gradients, update) ->
`optimizer`; beside it `state`, `checkpoint`, `metrics`, `trackers` and `distributed`.
Start with: `trainer.Trainer.fit`, then `step.accumulate_gradients`.
Rule: does not know `inference` or `evaluation`: the trainer is handed `evaluate` and `sample`.
"""
