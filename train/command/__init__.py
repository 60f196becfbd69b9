"""From the words on a command line to a config.

1. ``overrides``: ``--config=FILE[:ROW]`` is loaded, and each ``--config.FIELD=VALUE`` changes a field of it.
2. ``program``: the parser of all programs, ``--help``, and how a program ends: with one line where the user
   can mend what went wrong, and with an exit code of ``train.errors``.

Nothing here imports JAX, so that a mistake is told at once.
"""
