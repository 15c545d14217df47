"""Pictures. Matplotlib takes a second to import, so import these modules where they are called."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from toolkit.files import write_bytes


def save_png(path: Path, figure: Figure) -> None:
    """Write a figure in one step."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    write_bytes(path, file.getvalue())
