"""Packs: model files made small for delivery, and expanded to the very same bytes on the device.

The format and its reader are `edgekit.runtimes.device_scripts.unpack`, one file that runs on a board; here is what
writes packs.
"""

from __future__ import annotations

from edgekit.packing.files import PACK_SUFFIX, PackedFile, PackReport, pack, unpack, unpacker_source
from edgekit.packing.writing import pack_bytes

__all__ = ["PACK_SUFFIX", "PackReport", "PackedFile", "pack", "pack_bytes", "unpack", "unpacker_source"]
