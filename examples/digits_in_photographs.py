"""Pictures for a network that has to look for something: a handwritten digit on a photograph.

Digits and photographs ship with scikit-learn; nothing is downloaded. The validation pictures have
other digits, and other halves of the photographs, than those to train on.

    python examples/digits_in_photographs.py FOLDER        # FOLDER/train/three/…, FOLDER/val/three/…
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits, load_sample_images

SIDE = 128  # of a picture, in pixels
COUNTS = {"train": 4000, "val": 400}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def main(folder: Path, counts: dict[str, int] = COUNTS) -> None:
    """Writes the pictures, PNG, the same ones every time."""
    digits = load_digits()
    halves = {
        "train": [photograph[:, :320] for photograph in load_sample_images().images],
        "val": [photograph[:, 320:] for photograph in load_sample_images().images],
    }
    for split, count in counts.items():
        mine = np.arange(len(digits.target)) % 5 == 0
        places = np.flatnonzero(mine if split == "val" else ~mine)
        for number in range(count):
            rng = np.random.default_rng([split == "val", number])
            place = rng.choice(places)
            picture = draw(digits.images[place], halves[split][number % 2], rng)
            name = folder / split / NAMES[digits.target[place]] / f"{number:04d}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(name), picture[..., ::-1])


def draw(digit: np.ndarray, photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A digit, [8, 8] from 0 to 16, somewhere on a window of a photograph: uint8 [SIDE, SIDE, 3]."""
    side = rng.integers(SIDE, 320)
    top, left = (rng.integers(0, length - side + 1) for length in photograph.shape[:2])
    window = photograph[top : top + side, left : left + side]
    picture = cv2.resize(window, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    size = int(rng.integers(48, 81))
    grey = cv2.resize(digit.astype(np.float32) / 16, (size, size), interpolation=cv2.INTER_CUBIC)
    cover = np.clip((grey - 0.3) / 0.2, 0, 1)[..., None]  # strokes with a sharp edge
    top, left = rng.integers(0, SIDE - size + 1, 2)
    behind = picture[top : top + size, left : left + size]
    colour = behind.mean((0, 1))
    while abs(colour.mean() - behind.mean()) < 70:
        colour = rng.uniform(0, 255, 3)
    behind += cover * (colour - behind)
    return np.clip(picture, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
