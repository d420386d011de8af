"""Media files in and out: the only package that uses codecs."""
