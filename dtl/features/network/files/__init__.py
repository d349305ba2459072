"""Networks in files: what their input wants, which bytes they are, and how they are read and cut.

`source` finds a file, and imports no engine; `keras_file` reads .keras, and `graph` .onnx and .xml.
"""
