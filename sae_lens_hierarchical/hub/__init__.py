"""SAEs on the Hugging Face Hub: pushed whole, with a card made from the SAE."""

from sae_lens_hierarchical.hub.card import CITATION, model_card
from sae_lens_hierarchical.hub.push import push_to_hub

__all__ = ["CITATION", "model_card", "push_to_hub"]
