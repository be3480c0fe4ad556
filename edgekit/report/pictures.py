"""Evaluation inputs as small pictures for the report."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["png_base64"]

_LARGEST = 256


def png_base64(array: np.ndarray) -> str | None:
    """A `[1 or 3, H, W]`, `[H, W, 1 or 3]` or `[H, W]` array as a base64 PNG, stretched from its own range.

    None for anything else.
    """
    import numpy as np
    from PIL import Image

    planes = array[None] if array.ndim == 2 else array
    if planes.ndim == 3 and planes.shape[0] not in (1, 3) and planes.shape[-1] in (1, 3):
        planes = np.moveaxis(planes, -1, 0)
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or not np.isfinite(planes).all():
        return None
    if not all(4 <= extent <= _LARGEST for extent in planes.shape[1:]):
        return None
    low, high = float(planes.min()), float(planes.max())
    scaled = (planes.astype(np.float64) - low) / (high - low if high > low else 1.0) * 255
    pixels = np.rint(scaled).astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
