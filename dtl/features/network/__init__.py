"""The pretrained network: Keras' by name, cut at layers, with its weights.

Others use `architecture` (a network without its weights) and `keras_network` (one that computes).
Only `quiet_keras` imports Keras, and this package none of its modules: processes import what they
need.
"""
