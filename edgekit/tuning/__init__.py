"""The recovery ladder: from a gate that an int8 file misses to the cheapest change that makes it pass."""
