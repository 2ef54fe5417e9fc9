"""The command `agi2`, and the four scripts behind it.

Flow: `startup` (before heavy imports) -> `main` (arguments, errors, exit status) -> one function of
the package for each command; `completion` completes keys and runs in the shell.
Start with: `main`.
Rule: only this package and `console` print, and nothing imports it.
"""
