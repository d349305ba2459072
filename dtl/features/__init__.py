"""Photographs to rows: the network, its weights, and the feature store.

Others use `values.ExtractionSpec` (what features follow from), `featurization.featurize`,
`derivation.derive`, `splitting.split_images` and `store.FeatureStore`. The network is a package of
its own, `network`, and on workers only; only `arrays` imports Zarr.
"""
