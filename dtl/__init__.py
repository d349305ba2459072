"""Distributed transfer learning: folders of photographs to an image classifier, on Dask.

The stages, each a function to call with a `distributed.Client`: `dtl.listing.list_images`,
`dtl.features.featurize`, `dtl.listing.split_images`, `dtl.trainer.train`,
`dtl.evaluation.evaluate`. `python -m dtl.pipeline` runs them in order.
"""
