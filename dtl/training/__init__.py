"""Rows to a head, on the workers.

It gives `spec.TrainingSpec` and `trainer.train`; `tuning.tune` and `comparison.compare`, which
train several times; and `estimator.SoftmaxRegression` for Dask and NumPy arrays.
"""
