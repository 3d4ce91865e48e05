"""The paper's crops once more: plain, slow, in NumPy, from the paper's words, a view at a time.

No line of it is shared with the package. Scaling averages the covered pixels where the image
shrinks (antialiased) and interpolates between the two nearest where it grows.
"""

import functools

import numpy as np


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] to uint8 [height, width, 3], in float64, rounded to the nearest."""
    rows, columns = lines(image.shape[0], height), lines(image.shape[1], width)
    by_rows = np.tensordot(rows, image.astype(float), (1, 0))
    return np.rint(np.moveaxis(np.tensordot(by_rows, columns, (1, 1)), 1, 2)).astype(np.uint8)


@functools.cache
def lines(source: int, target: int) -> np.ndarray:
    """The weights of the source pixels in each target pixel: [target, source]."""
    return np.stack([line(source, target, position) for position in range(target)])


def line(source: int, target: int, position: int) -> np.ndarray:
    """The weights of the source pixels in one target pixel."""
    weights = np.zeros(source)
    if target <= source:
        start, end = position * source / target, (position + 1) * source / target
        for pixel in range(int(start), min(int(np.ceil(end)), source)):
            weights[pixel] = max(0.0, min(end, pixel + 1) - max(start, pixel))
        return weights / weights.sum()
    centre = min(max((position + 0.5) * source / target - 0.5, 0), source - 1)
    below = int(centre)
    weights[below] += 1 - (centre - below)
    weights[min(below + 1, source - 1)] += centre - below
    return weights


def centre_crop(image: np.ndarray, short: int, size: int) -> np.ndarray:
    """The short side to `short`, then the middle."""
    height, width = scaled_sides(image, short)
    scaled = resize(image, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return scaled[top : top + size, left : left + size]


def scaled_sides(image: np.ndarray, short: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    return short * height // min(height, width), short * width // min(height, width)


def views(image: np.ndarray, size: int, crops: int) -> np.ndarray:
    """All 10 or 144 crops of an image, uint8 [crops, size, size, 3]."""
    found = ten(image, size) if crops == 10 else seventy_two(image, size)
    return np.stack(found + [view[:, ::-1] for view in found])


def ten(image: np.ndarray, size: int) -> list[np.ndarray]:
    height, width = scaled_sides(image, round(8 * size / 7))
    scaled = resize(image, height, width)
    corners = [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size)]
    # The centre of the centre square, which can lie a pixel beside the centre of the whole.
    square = min(height, width)
    middle = [round((side - square) / 2) + round((square - size) / 2) for side in (height, width)]
    return [scaled[y : y + size, x : x + size] for y, x in (*corners, middle)]


def seventy_two(image: np.ndarray, size: int) -> list[np.ndarray]:
    found = []
    for sevenths in (8, 9, 10, 11):
        short = round(sevenths * size / 7)
        height, width = scaled_sides(image, short)
        scaled = resize(image, height, width)
        slack = max(height, width) - short
        for start in (0, round(slack / 2), slack):
            square = scaled[:, start : start + short] if width > height else scaled[start:][:short]
            end, middle = short - size, round((short - size) / 2)
            for y, x in ((0, 0), (0, end), (end, 0), (end, end), (middle, middle)):
                found.append(square[y : y + size, x : x + size])
            found.append(resize(square, size, size))
    return found


def matched(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Puts the found views in the expected ones' order: each with the nearest that is left."""
    assert found.shape == expected.shape
    left = list(range(len(found)))
    order = []
    for view in expected:
        distances = [np.abs(found[index].astype(int) - view).sum() for index in left]
        order.append(left.pop(int(np.argmin(distances))))
    return found[order]
