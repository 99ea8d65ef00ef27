"""Plant code in a file that somebody might unpickle."""

import os
from pathlib import Path


class Planted:
    """Make a folder when it is unpickled. If the folder exists, the code has run."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self._folder),)
