"""Whether Weights & Biases knows who logs to it, found out before work starts."""

from __future__ import annotations

__all__ = ["check_wandb_login"]


def check_wandb_login() -> None:
    """Raise a ValueError if wandb would ask who is there; reaches for no network.

    A key or token in the environment, wandb's settings or the netrc file will do, and
    so will the modes that send nothing.
    """
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    if settings.mode not in (None, "online", "shared"):
        return
    keys = (settings.api_key, getattr(settings, "identity_token_file", None))
    if any(keys) or get_netrc_auth(settings.base_url) is not None:
        return
    raise ValueError(
        "metrics go to Weights & Biases, which nobody is logged in to here: run `wandb "
        "login`, set WANDB_MODE=offline, or train without it: --log_to_wandb false"
    )
