"""Every way to get SAEs, models and texts from folders and the Hub.

What lies there may come from a stranger. Nothing of it runs, and what does not fit is
one clear error.
"""

from sae_lens_hierarchical.loading.models import load_model_and_dataset, load_store
from sae_lens_hierarchical.loading.saes import load_sae, load_saes
from sae_lens_hierarchical.loading.sources import SAESource, find_sae, find_saes

__all__ = [
    "SAESource",
    "find_sae",
    "find_saes",
    "load_model_and_dataset",
    "load_sae",
    "load_saes",
    "load_store",
]
