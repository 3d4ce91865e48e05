"""Pictures of explanations, and one page that holds them all and loads nothing."""

import base64
import functools
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from googlenet_jax.runtime.storage import write_atomically, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from googlenet_jax.interpretability.explain import Explanation

SIDE = 224  # pixels: smaller pictures are enlarged to at least this


def enlarge(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Repeats the pixels of uint8 `[H, W, 3]`, so that the short side is at least `side`."""
    times = max(1, math.ceil(side / min(picture.shape[:2])))
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def overlay(crop: np.ndarray, heat: np.ndarray, *, fine: bool = False) -> np.ndarray:
    """Lays a map over a picture, uint8 `[S, S, 3]`, whose colours fade where the map is cold.

    Args:
      heat: `[H, W]`, at least 0; its largest value is the hottest (with `fine`, the 99th
        percentile, since the map of single pixels has outliers).
    """
    picture = enlarge(crop)
    top = float(np.percentile(heat, 99) if fine else heat.max())
    scaled = np.clip(heat / top, 0, 1) if top > 0 else np.zeros_like(heat)
    resample = Image.Resampling.NEAREST if fine else Image.Resampling.BICUBIC
    size = (picture.shape[1], picture.shape[0])
    wide = Image.fromarray(scaled.astype(np.float32)).resize(size, resample)
    share = np.clip(np.asarray(wide), 0, 1)[..., None]
    grey = picture.mean(-1, keepdims=True).repeat(3, -1)
    cold = 0.5 * grey if fine else 0.6 * grey + 0.15 * picture
    weight = share if fine else 0.75 * np.sqrt(share)
    mixed = (1 - weight) * cold + weight * _coloured(share[..., 0])
    return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)


def tiles(pictures: np.ndarray) -> np.ndarray:
    """Lays maps `[K, H, W]`, each scaled to its own largest value, or uint8 pictures
    `[K, H, W, 3]`, out in a square.
    """
    if pictures.ndim == 3:
        top = pictures.max((1, 2), keepdims=True)
        scaled = np.clip(pictures / np.where(top > 0, top, 1), 0, 1)
        pictures = np.rint(_coloured(scaled)).astype(np.uint8)
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    shown = [enlarge(each, 2 * SIDE // columns) for each in pictures]
    height, width = (side + 4 for side in shown[0].shape[:2])
    sheet = np.full((rows * height + 4, columns * width + 4, 3), 255, np.uint8)
    for number, each in enumerate(shown):
        top, left = 4 + number // columns * height, 4 + number % columns * width
        sheet[top : top + height - 4, left : left + width - 4] = each
    return sheet


def _coloured(share: np.ndarray) -> np.ndarray:
    """From 0 to 1 to matplotlib's "inferno", RGB from 0 to 255."""
    import matplotlib

    return 255 * matplotlib.colormaps["inferno"](share)[..., :3]


def draw_explanations(path: str | Path, explanations: Sequence["Explanation"]) -> None:
    """Draws `explanation_figure` into a file. Raises UserError where it can't be written."""
    figure = explanation_figure(explanations)
    with writing(path):
        write_atomically(Path(path), figure.savefig)


def explanation_figure(explanations: Sequence["Explanation"], columns: int = 4) -> "Figure":
    """Draws each picture beside its explanation, with the likeliest classes as bars below."""
    from matplotlib.figure import Figure

    from googlenet_jax.evaluation.pictures import draw_bars

    columns = min(columns, len(explanations))
    rows = math.ceil(len(explanations) / columns)
    figure = Figure(figsize=(3.2 * columns, 3.1 * rows), dpi=120, layout="constrained")
    parts = figure.subfigures(rows, columns, squeeze=False)
    for part, each in zip(parts.flat, explanations, strict=False):
        axes = part.subplot_mosaic([["crop", "seen"], ["bars", "bars"]], height_ratios=[1.6, 1.1])
        axes["crop"].imshow(each.crop, interpolation="nearest")
        axes["seen"].imshow(each.picture)
        for axis in axes.values():
            axis.set_axis_off()
        draw_bars(axes["bars"], each.predictions, 5)
    return figure


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Writes uint8 `[H, W, 3]` as the path's ending says. Raises UserError where it can't."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, functools.partial(_save, picture))


def _save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray(picture).save(path)


def write_page(path: Path, title: str, named: Sequence[tuple[str, "Explanation"]]) -> None:
    """Writes one HTML page with all pictures inside: what the network saw, why, and its classes."""
    body = "".join(_card(name, each) for name, each in named)
    text = _PAGE.format(title=html.escape(title), body=body)
    with writing(path):
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def _card(name: str, explanation: "Explanation") -> str:
    lines = "".join(
        f"<tr><td>{html.escape(each.class_name)}</td><td>{100 * each.probability:.1f} %</td></tr>"
        for each in explanation.predictions
    )
    where = f" at {explanation.endpoint}" if explanation.endpoint else ""
    what = html.escape(f"{explanation.method}{where}: {explanation.class_name}")
    pictures = "".join(
        f'<img alt="{alt}" src="data:image/png;base64,{_encoded(picture)}">'
        for alt, picture in (
            (f"{html.escape(name)}, as the network sees it", enlarge(explanation.crop)),
            (what, explanation.picture),
        )
    )
    return (
        f"<section><h2>{html.escape(name)}</h2><p>{what}</p>"
        f'<div class="pair">{pictures}</div><table>{lines}</table></section>'
    )


def _encoded(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  color: #1d2330; background: #fff; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }}
section {{ background: #f2f4f8; border-radius: .4rem; padding: .8rem; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1rem; margin: 0; overflow-wrap: anywhere; }}
p {{ margin: .2rem 0 .5rem; color: #5b6474; overflow-wrap: anywhere; }}
.pair {{ display: flex; gap: .4rem; }}
.pair img {{ width: calc(50% - .2rem); height: auto; align-self: start; }}
table {{ width: 100%; margin-top: .5rem; border-collapse: collapse; }}
td {{ overflow-wrap: anywhere; }}
td + td {{ text-align: right; white-space: nowrap; }}
</style>
</head>
<body>
<h1>{title}</h1>
<main>{body}</main>
</body>
</html>
"""
