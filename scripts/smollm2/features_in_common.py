"""Print how much of what an SAE uses others have too, and what one threshold gives.

Run it as ``python scripts/smollm2/features_in_common.py ACTIVATIONS SAE [SAE ...]``,
with the folder of cache_activations.py and folders that ``experiment.py --save`` wrote.
It reads the validation split.

Two features are the same if their decoder rows have a cosine of at least 0.9. A row of
the table is an SAE at its k, a column an SAE that may have the same features: the share
of the row's activations on all tokens that are of such a feature. A third table has
HierarchicalTopK SAEs with one threshold for all features in place of the k largest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor
from torch.nn.functional import normalize

from sae_lens_hierarchical import HierarchicalTopKSAE, calibrate_thresholds
from sae_lens_hierarchical.loading import load_sae

SAME = 0.9
BATCH = 1024
CALIBRATION_TOKENS = 65_536


class Used(NamedTuple):
    """An SAE at one k: the unit rows of what it uses, and how often it does."""

    name: str
    rows: Tensor  # [n, d_in]
    counts: Tensor  # [n], tokens on which each is active

    def shared_with(self, other: Used) -> float:
        """Return the share of the activations whose feature the other uses, too."""
        same = 0
        for rows, counts in zip(
            self.rows.split(BATCH), self.counts.split(BATCH), strict=True
        ):
            closest = (rows @ other.rows.T).amax(dim=1)
            same += int(counts[closest >= SAME].sum())
        return same / int(self.counts.sum())


def batches(rows: np.ndarray) -> list[Tensor]:
    """Return activations in float32."""
    return [
        torch.from_numpy(rows[start : start + BATCH].astype(np.float32))
        for start in range(0, len(rows), BATCH)
    ]


def used(name: str, sae: SAE[Any], data: list[Tensor]) -> Used:
    """Return what an SAE uses on all tokens, as it is set."""
    counts = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    for x in data:
        counts += (sae.encode(x).to_dense() != 0).sum(dim=0)
    rows = normalize(sae.W_dec.detach(), dim=1)
    return Used(name, rows[counts > 0], counts[counts > 0])


def with_threshold(sae: HierarchicalTopKSAE, data: list[Tensor]) -> tuple[float, float]:
    """Return L0 and explained variance as the SAE is set."""
    mean = torch.cat(data).mean(dim=0)
    active, error, variance, tokens = 0, 0.0, 0.0, 0
    for x in data:
        acts = sae.encode(x)
        active += int((acts != 0).sum())
        error += float((x - sae.decode(acts)).square().sum())
        variance += float((x - mean).square().sum())
        tokens += len(x)
    return active / tokens, 1 - error / variance


@torch.no_grad()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("activations", type=Path)
    parser.add_argument("saes", type=Path, nargs="+")
    args = parser.parse_args()
    data = batches(np.load(args.activations / "validation.npy"))
    train = np.load(args.activations / "train.npy", mmap_mode="r")
    all_used: list[Used] = []
    thresholds: list[str] = []
    for folder in args.saes:
        sae = load_sae(folder)
        if not isinstance(sae, HierarchicalTopKSAE):
            all_used.append(used(folder.name, sae, data))
            continue
        for k in (2, 8, 32):
            with sae.at_k(k):
                all_used.append(used(f"{folder.name} at {k}", sae, data))
        calibrate_thresholds(sae, batches(train[:CALIBRATION_TOKENS]))
        sae.activation = "jumprelu"
        for k in (2, 8, 32):
            with sae.at_k(k):
                l0, ev = with_threshold(sae, data)
            thresholds.append(f"| {folder.name} | {k} | {l0:.2f} | {ev:.4f} |")

    print("| activations of | features | tokens of a feature |", end="")
    print(*(f" {other.name}" for other in all_used), sep=" |", end=" |\n")
    print("| --- " * (3 + len(all_used)) + "|")
    for one in all_used:
        # How often the feature of an activation is active, as a share of the tokens.
        tokens = len(data) * BATCH
        frequency = float((one.counts.double() ** 2).sum() / one.counts.sum() / tokens)
        shares = (f" {one.shared_with(other):.2f}" for other in all_used)
        print(f"| {one.name} | {len(one.rows)} | {frequency:.3f} |", end="")
        print(*shares, sep=" |", end=" |\n")
    print("\n| one threshold | k | L0 | EV |\n| --- | --- | --- | --- |")
    print("\n".join(thresholds))


if __name__ == "__main__":
    main()
