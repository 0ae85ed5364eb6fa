"""Pictures for a page of bounded size."""

from pathlib import Path

import cv2
import numpy as np

from ...cache.errors import UserError

LARGEST = 24_000
"""Bytes of a picture that is taken as it is."""
WIDTH = 240
"""Of larger ones, after shrinking, pixels."""


def small_picture(path: Path) -> tuple[str, bytes]:
    """Read a JPEG or PNG; a large one is shrunk and becomes a JPEG.

    Returns:
        `jpeg` or `png`, and the bytes.

    Raises:
        UserError: If it is no picture.
    """
    data = path.read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise UserError(f"no picture that can be read; {str(path)!r}; delete its study and run `amfir study` again")
    if len(data) <= LARGEST:
        return ("png" if data.startswith(b"\x89PNG") else "jpeg"), data
    height = max(1, round(image.shape[0] * WIDTH / image.shape[1]))
    small = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_AREA)
    return "jpeg", cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
