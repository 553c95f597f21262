"""Make ``sae_lens_hierarchical.ops`` importable where SAELens is not installed.

The operators need torch and Triton alone, but the package that holds them imports
SAELens. Importing this module puts an empty package in its place.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_NAME = "sae_lens_hierarchical"
_spec = importlib.machinery.ModuleSpec(_NAME, None, is_package=True)
_spec.submodule_search_locations = [str(ROOT / _NAME)]
sys.modules[_NAME] = importlib.util.module_from_spec(_spec)
