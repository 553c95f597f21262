"""Write the list of SAELens's options that ``train --help`` shows."""

from __future__ import annotations

import sae_lens_hierarchical  # noqa: F401  # pyright: ignore[reportUnusedImport] - registers
from sae_lens_hierarchical.cli.saelens_options import LIST, ask_saelens

LIST.write_text(ask_saelens().to_json(), encoding="utf-8")
print(LIST)
