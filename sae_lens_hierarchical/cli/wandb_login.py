"""Whether Weights & Biases knows who logs to it, found out before work starts."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["check_wandb_login"]


def check_wandb_login() -> None:
    """Raise a ValueError if wandb would ask who is there; reaches for no network.

    A key or token in the environment, wandb's settings or the netrc file will do, and
    so will the modes that send nothing.
    """
    import wandb

    settings = wandb.setup().settings
    if settings.mode not in (None, "online", "shared"):
        return
    keys = (settings.api_key, getattr(settings, "identity_token_file", None))
    if any(keys) or _in_netrc(str(settings.base_url)):
        return
    raise ValueError(
        "metrics go to Weights & Biases, which nobody is logged in to here: run `wandb "
        "login`, set WANDB_MODE=offline, or train without it: --logger csv, or none"
    )


def _in_netrc(url: str) -> bool:
    """Tell whether the user's netrc file has a password for a host."""
    named = os.environ.get("NETRC")
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        try:
            entry = netrc.netrc(Path(path).expanduser()).authenticators(
                str(urlsplit(url).hostname)
            )
        except (OSError, netrc.NetrcParseError):
            continue  # wandb takes it for none, too
        if entry is not None:
            return True
    return False
