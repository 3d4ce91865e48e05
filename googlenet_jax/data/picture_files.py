"""Which files of a folder are pictures: one answer for training, `prepare` and `predict`."""

from pathlib import Path

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def list_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files below a folder that end as pictures do, and the others; each in a fixed order.

    Hidden files, and what lies in hidden folders, are in neither: macOS and editors leave such
    files, `._photo.jpg` for each `photo.jpg`. So are pipes and devices.
    """
    pictures: list[Path] = []
    others: list[Path] = []
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and file.is_file():
            (pictures if file.suffix.lower() in ENDINGS else others).append(file)
    return pictures, others
