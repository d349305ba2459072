"""Photographs to rows: the network, its weights, and the feature store."""
