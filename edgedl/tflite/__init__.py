""".tflite files: run, looked into, and edited behind the converter."""
