"""Data sets of one's own, from wherever they come to named arrays in splits; images and recordings from folders."""
