"""A network and a head as one classifier, in a file that needs no dtl.

`formats` lists the formats. For each a module, such as `onnx_classifier`, writes one (``write``),
and runs it as others would (``load``). Every classifier takes RGB images, gives calibrated
probabilities, and holds what `formats.About` says. `jpeg_pixels` lets a SavedModel read JPEGs. Only
`quiet_tensorflow` imports TensorFlow, and only `onnx_classifier` the packages of ONNX.
"""
