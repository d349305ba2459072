"""Photographs to rows: the network, its weights, and the feature store.

Others use `values.ExtractionSpec` (what features follow from), `featurization.featurize`,
`derivation.derive`, `splitting.split_images` and `store.FeatureStore`. Only `quiet_keras` imports
Keras, on workers; only `arrays` imports Zarr.
"""
