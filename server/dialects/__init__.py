"""Wire dialects: each writes one request's events, as a stream or as a whole, in the format of one API."""
