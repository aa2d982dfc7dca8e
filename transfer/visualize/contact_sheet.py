"""A self-contained HTML page of pictures with captions, which can be sent and opened anywhere."""

import base64
import html
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pretrain.common.files import write_text
from transfer.visualize.drawing import write_jpeg

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 1rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.sheet { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; } img { width: 100%; height: auto; border-radius: 4px; }
figcaption, p { overflow-wrap: anywhere; } figcaption { font-size: .9rem; }
""".strip()


@dataclass
class Section:
    """A heading, a sentence under it, and pictures: each (H, W, 3) RGB uint8 with a one-line caption."""

    title: str
    about: str
    prefix: str  # of the file names
    pictures: list[tuple[np.ndarray, str]] = field(default_factory=list)


def write(folder: Path, title: str, about: str, sections: list[Section]) -> list[Path]:
    """Write each picture as `PREFIX_NN.jpg` and all of them into `index.html`. Return the paths; the page is last."""
    paths = []
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(about)}</p>"]
    for section in sections:
        body += [f"<h2>{html.escape(section.title)}</h2>", f"<p>{html.escape(section.about)}</p>"]
        body.append('<div class="sheet">')
        for number, (picture, caption) in enumerate(section.pictures):
            paths.append(folder / f"{section.prefix}_{number:02}.jpg")
            content = base64.b64encode(write_jpeg(paths[-1], picture)).decode()
            text = html.escape(caption)
            height, width = picture.shape[:2]
            body.append(
                f'<figure><img src="data:image/jpeg;base64,{content}" width="{width}" height="{height}" '
                f'alt="{text}"><figcaption>{text}</figcaption></figure>'
            )
        body.append("</div>" if section.pictures else "</div><p>None.</p>")
    page = folder / "index.html"
    text = _page(title, "\n".join(body))
    write_text(page, text, errors="replace")  # a file name may not be valid text
    return [*paths, page]


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style></head>\n<body>\n{body}\n</body></html>\n"
    )
