"""A demonstration: human speech through the whole way, to the device that spoke and to no other."""
