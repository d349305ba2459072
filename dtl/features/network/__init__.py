"""The pretrained network, cut at layers, with its weights: on Keras, or converted for OpenVINO.

Others use `architecture` (a network without its weights), `keras_network` and `openvino_network`
(those that compute) and `network_file` (a converted one). `apart` runs what converts and quantizes
in processes of their own. Only `quiet_keras` imports Keras and only `quiet_openvino` OpenVINO, and
this package none of its modules: processes import what they need.
"""
