"""Export of runs to OpenVINO and ONNX, for machines without torch."""
