"""Warnings that a reader of the scores needs first."""

from __future__ import annotations

from dtl.features.store import FeatureStore


def warnings_about(store: FeatureStore) -> list[str]:
    """List what makes the scores mean less than they seem to."""
    if store.attrs["weights"] != "random":
        return []
    return [
        f"The network was not trained: {store.fingerprint['network']} has random weights, so its "
        "features are random projections and the scores are far below what ImageNet weights give. "
        "This shows that everything runs, not how good a classifier can be."
    ]
