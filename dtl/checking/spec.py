"""All that a check follows from."""

from __future__ import annotations

from typing import Any

from dtl.config import CheckConfig, to_fingerprint
from dtl.features.store import FeatureStore

VERSION = 1
"""Of the rules by which issues are found; another one finds others in the same store."""


def provenance(store: FeatureStore, layer: str, config: CheckConfig, seed: int) -> dict[str, Any]:
    """Return the fingerprint of a check, as JSON has it: labels are part of the features'."""
    return {
        "features": store.fingerprint,
        "weights_sha256": store.attrs["weights_sha256"],
        "split": store.split_fingerprint,
        "layer": layer,
        "check": to_fingerprint(config) | {"version": VERSION},
        "seed": seed,
    }
