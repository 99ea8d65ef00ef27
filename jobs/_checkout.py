"""Makes the rooms of this checkout importable in a job's driver, and names them for Ray's workers.

`ray job submit --working-dir .` puts a copy of the checkout on machines that have the dependencies but not
this code, and `platform/` cannot be a package (it would shadow Python's own module): so every job imports
this module first, and hands `PY_MODULES` to `ray.init`.

That copy is temporary. A submitted job therefore goes to ~/xactor, and what it is told in relative paths lies there.
"""

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PY_MODULES = [
    str(CHECKOUT / room) for room in ("xactor", "serving/xactor_serving", "platform/xactor_platform")
]

for folder in (CHECKOUT, CHECKOUT / "platform", CHECKOUT / "serving"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

if "working_dir_files" in CHECKOUT.parts:  # Ray's name for the folder of such copies
    home = Path.home() / "xactor"
    home.mkdir(parents=True, exist_ok=True)
    os.chdir(home)
