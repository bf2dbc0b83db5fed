"""The ``frostline`` command: one file a subcommand; each parses, calls, prints.

Nothing heavy is imported before a subcommand runs, so ``frostline --help`` answers at once.
"""
