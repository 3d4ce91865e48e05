"""Explanations as one HTML page that loads nothing."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from googlenet_jax.data.image_kind import shown
from googlenet_jax.html_page import html_page
from googlenet_jax.interpretability.drawing import magnified
from googlenet_jax.interpretability.explain import Explanation

# What each method shows, for the page's reader.
SHOWS = {
    "gradcam": "Grad-CAM: the warmer, the more the layer's channels there speak for the class.",
    "occlusion": "Occlusion: red where a square that covers the image costs the class probability, "
    "blue where it helps.",
    "integrated": "Integrated gradients: red pixels raise the class's logit, blue ones lower it.",
    "filters": "The first convolution's kernels; grey is 0.",
    "activations": "The layer's strongest channels on this image; bright is their largest value.",
    "deepdream": "DeepDream: the image changed until the layer answers more strongly.",
}

_STYLE = """
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 0 1 18rem; }
figure img { width: 100%; height: auto; image-rendering: pixelated; }
figcaption { color: #5b6474; overflow-wrap: anywhere; }
"""


def explanations_page(heading: str, rows: Mapping[str, Sequence[Explanation]]) -> str:
    """Returns the page: a row for each image's name, which holds the image and its explanations.

    Args:
      heading: what the network was loaded from.
    """
    used = dict.fromkeys(each.method for row in rows.values() for each in row)
    legend = "".join(f"<li>{html.escape(SHOWS[method])}</li>" for method in used)
    return html_page(
        "Explained", heading, f"<ul>{legend}</ul>" + "".join(map(_row, rows, rows.values())), _STYLE
    )


def _row(name: str, explanations: Sequence[Explanation]) -> str:
    first = explanations[0]
    figures = []
    if first.image is not None:
        figures.append(_figure("what the network saw", magnified(shown(first.image))))
    for each in explanations:
        parts = [each.method, each.layer, _about(each), each.note]
        figures.append(_figure(", ".join(filter(None, parts)), each.picture))
    return f'<h2>{html.escape(name)}</h2><div class="row">{"".join(figures)}</div>'


def _about(each: Explanation) -> str:
    if each.class_name is None or each.probability is None:
        return ""
    return f"{each.class_name} {100 * each.probability:.1f} %"


def _figure(caption: str, picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    encoded, caption = base64.b64encode(buffer.getvalue()).decode(), html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
