"""Steps, one file each: model in, model out."""
