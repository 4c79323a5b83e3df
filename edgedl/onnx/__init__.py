"""ONNX files: written from graphs of PyTorch, brought into other forms, run, and read back as layers."""
