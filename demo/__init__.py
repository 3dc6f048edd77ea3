"""A demonstration of the whole path of speech: each device gets its own transcript and no other."""
