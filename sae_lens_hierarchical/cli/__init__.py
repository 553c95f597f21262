"""The command line: ``sae-lens-hierarchical quickstart | train | sweep | ...``.

A file a command: its options beside what they start. Nothing heavy is imported before a
command runs, so that ``--help`` answers at once.
"""

from sae_lens_hierarchical.cli.main import main

__all__ = ["main"]
