"""Selective search (Uijlings et al., IJCV 2013) in R-CNN's fast mode, by OpenCV."""

import ctypes
from typing import Any

import cv2
import numpy as np

from googlenet_jax.data import resampling
from googlenet_jax.errors import UserError

# R-CNN's fast mode: the segmentation's k, which is also its smallest region in pixels.
FAST_K = (50, 100)
SIGMA = 0.8  # of the blur before the segmentation
SMALLEST_SIDE = 20  # of a box, in pixels of the image that is searched


def selective_search(
    image: np.ndarray,
    *,
    superpixel_scale: float = 1,
    width: int = 0,
    smallest_side: int = SMALLEST_SIDE,
    seed: int = 0,
) -> np.ndarray:
    """Proposes boxes that may hold an object: of regions that grow together from superpixels.

    Two colour spaces (HSV and Lab), two sizes of superpixels, and two measures of similarity: fill,
    texture and size, with colour and without.

    Args:
      image: uint8 [H, W, 3], RGB.
      superpixel_scale: multiplies k and the smallest region; 2 is GoogLeNet's (arXiv 1409.4842,
        section 8), which about halves the number of boxes.
      width: to which the image is scaled before, 500 in R-CNN's practice; 0 leaves it as it is.
      smallest_side: of a box, in pixels of the scaled image.
      seed: of the order. OpenCV draws it from C's rand(), so that two calls would differ without.
    Returns:
      float32 [P, 4], (top, left, bottom, right) in the image's pixels, without duplicates, those
      that are more likely to be an object first.
    Raises:
      UserError: OpenCV is not its contrib build.
    """
    scale = width / image.shape[1] if width else 1.0
    if scale != 1:
        image = resampling.scale(image, max(1, round(image.shape[0] * scale)), width)
    search = _search(image, superpixel_scale)
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)  # other threads would draw from rand() in an order of their own
        ctypes.CDLL(None).srand(seed)
        found = search.process()
    finally:
        cv2.setNumThreads(threads)
    x, y, w, h = np.asarray(found, np.float32).reshape(-1, 4).T
    boxes = np.stack([y, x, y + h, x + w], axis=1)[(w >= smallest_side) & (h >= smallest_side)]
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)] / np.float32(scale)


def _search(image: np.ndarray, superpixel_scale: float) -> Any:
    # Another package's OpenCV, installed later, takes the place of the contrib build.
    module: Any = getattr(getattr(cv2, "ximgproc", None), "segmentation", None)
    if module is None:
        raise UserError(
            "selective search: the OpenCV installed lacks ximgproc; run: pip uninstall -y "
            "opencv-python opencv-python-headless opencv-contrib-python-headless, then: "
            "pip install opencv-contrib-python-headless"
        )
    search = module.createSelectiveSearchSegmentation()
    for space in (cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2Lab):
        search.addImage(cv2.cvtColor(image, space))
    for k in (k * superpixel_scale for k in FAST_K):
        search.addGraphSegmentation(module.createGraphSegmentation(SIGMA, k, round(k)))
    for measures in (("Color", "Fill", "Texture", "Size"), ("Fill", "Texture", "Size")):
        similarity = module.createSelectiveSearchSegmentationStrategyMultiple()
        for name in measures:
            strategy = getattr(module, f"createSelectiveSearchSegmentationStrategy{name}")()
            similarity.addStrategy(strategy, 1 / len(measures))
        search.addStrategy(similarity)
    return search
