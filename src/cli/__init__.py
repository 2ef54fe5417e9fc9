"""The command-line interface: the command `agi2` and the four scripts.

Flow: `startup` (before heavy imports) -> `main` (arguments, errors, exit status) -> one library
function per command; `completion` provides the shell completion of keys and runs.
Start with: `main`. The signature of a command is its flags, so that some have over 40 lines.
Rule: only this package and `console` print; no other package imports this one.
"""
