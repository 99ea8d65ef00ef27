"""Make the packages of this checkout importable in a job's driver, and list them for Ray's workers.

`ray job submit --working-dir .` copies the checkout to machines that have the dependencies but not this code. The
folder `platform/` cannot be a package, because it would shadow Python's own module `platform`. Therefore every job
imports this module first, which adds the packages' parent folders to `sys.path`. Jobs whose Ray workers need the code
pass `PY_MODULES` to `ray.init`.

The copy of the checkout is temporary. A submitted job therefore changes its working directory to ~/xactor, so that the
relative paths in its options refer to files that outlive the job.
"""

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
# Folders of the packages, which Ray copies to its workers.
PY_MODULES = [
    str(CHECKOUT / package) for package in ("xactor", "serving/xactor_serving", "platform/xactor_platform")
]

for folder in (CHECKOUT, CHECKOUT / "platform", CHECKOUT / "serving"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# Ray keeps the copies of submitted checkouts in a folder of this name, so this process is a submitted job.
if "working_dir_files" in CHECKOUT.parts:
    home = Path.home() / "xactor"
    home.mkdir(parents=True, exist_ok=True)
    os.chdir(home)
