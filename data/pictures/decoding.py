"""Decodes a picture of any common kind."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF')
MAX_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = None  # Pillow's limit, of which it warns only; ours is checked before a picture is decoded


def open_picture(raw: bytes) -> Image.Image:
    """Returns a picture of which only the header is read.

    Raises:
        ValueError: It is of no kind in FORMATS, or larger than MAX_PIXELS.
        Exception: It is damaged, for which Pillow raises many types.
    """
    Image.init()  # registers the formats, once
    try:
        picture = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError('no picture of a known format') from error
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f'{picture.width}x{picture.height} pixels are more than {MAX_PIXELS:,}')
    return picture


def decode(raw: bytes, mode: str = 'RGB', size: tuple[int, int] | None = None) -> Image.Image:
    """Returns a picture with 8 bits a channel.

    Of several frames it is the first. It is turned as its EXIF data say. What is transparent becomes white. 16 bits are
    divided by 256, and floating-point values are taken to be in [0, 1] if none is above 1.

    Args:
        raw: The content of the file.
        mode: 'RGB' or 'L', gray.
        size: (width, height) that the whole picture is stretched to, bilinearly; None for its own.

    Raises:
        Exception: As for `open_picture`.
    """
    picture = open_picture(raw)
    if size:  # a large JPEG is decoded at a half, a quarter or an eighth
        picture.draft('RGB', (2 * max(size), 2 * max(size)))
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(('I', 'F')):
        picture = Image.fromarray(_eight_bits(np.asarray(picture), deep=picture.mode.startswith('I;16')))
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    picture = picture.convert(mode)
    return picture.resize(size, Image.Resampling.BILINEAR) if size else picture


def _eight_bits(values: np.ndarray, deep: bool) -> np.ndarray:
    """Returns gray values as uint8; `deep` are those of 16 bits, others have 32 and may be of any range."""
    if values.dtype.kind == 'f':
        values = np.nan_to_num(values) * (255 if np.nanmax(values, initial=0) <= 1 else 1)
    elif deep or values.max(initial=0) > 255:
        values = values // 256
    return np.clip(values, 0, 255).astype(np.uint8)
