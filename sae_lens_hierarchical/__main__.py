"""``python -m sae_lens_hierarchical`` is the command line."""

import sys

from sae_lens_hierarchical.cli import main

if __name__ == "__main__":
    sys.exit(main())
