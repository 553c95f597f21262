"""Dashboards of single features: what each does at every k, as a page and as JSON.

``collect`` measures features in one pass over a stream of tokens, and ``page`` shows
them. ``folders`` does that for an SAE in a folder.
"""

from sae_lens_hierarchical.features.collect import collect_features, random_features
from sae_lens_hierarchical.features.folders import features_of_checkpoint
from sae_lens_hierarchical.features.neuronpedia import neuronpedia_batch
from sae_lens_hierarchical.features.page import html_page
from sae_lens_hierarchical.features.table import FeatureTable, to_json
from sae_lens_hierarchical.features.write import refuse_sae_folder, write_features

__all__ = [
    "FeatureTable",
    "collect_features",
    "features_of_checkpoint",
    "html_page",
    "neuronpedia_batch",
    "random_features",
    "refuse_sae_folder",
    "to_json",
    "write_features",
]
