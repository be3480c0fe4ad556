"""What a model file says about itself: parsed from its bytes, in a child process, never from what was asked for."""

from edgekit.converters.passports.facts import FileFacts, infer_scheme
from edgekit.converters.passports.inspection import inspect_file

__all__ = ["FileFacts", "infer_scheme", "inspect_file"]
