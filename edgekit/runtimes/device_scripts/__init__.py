"""Scripts that run on devices by themselves: standard library only, Python 3.9."""
