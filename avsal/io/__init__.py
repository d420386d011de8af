"""Media files in and out: the only room that knows codecs. It gives no meaning to what it reads."""
