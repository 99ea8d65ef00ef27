"""The demo, an executable table of contents: from nothing to a motion model that moves lips with speech.

    python jobs/demo.py

Everything lands in demo/: the corpus, the run, the model, the report.
"""

import signal
import subprocess
import sys
import time

import _checkout

from xactor_platform.cluster import local_cluster

DEMO = _checkout.CHECKOUT / "demo"
CORPUS, RUNS, REPORT = DEMO / "corpus", DEMO / "runs", DEMO / "report"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster ends with the demo
    started = time.monotonic()
    if not (CORPUS / "shards" / "index.parquet").exists():
        say("1. A corpus of talking clips with known ground truth, and its shards")
        run("make_demo_corpus.py", "--output", str(CORPUS))
    say("2. A local Ray cluster, and the training job submitted to it: 2 ranks of ZeRO-2")
    with local_cluster(cpus=2, log=DEMO / "ray.log") as cluster:
        arguments = [
            "--data.shards",
            str(CORPUS / "shards"),
            "--run.storage",
            str(RUNS),
            "--run.name",
            "demo",
        ]
        code = cluster.submit(
            ["python", "jobs/train_stage2.py", "tiny", *arguments], working_dir=_checkout.CHECKOUT
        )
    if code:
        sys.exit(f"the training job failed with exit code {code}; Ray's log: {DEMO / 'ray.log'}")
    say("3. What was learned, on a held-out person and held-out speech")
    run(
        "report_motion.py",
        *("--run", str(RUNS / "demo"), "--shards", str(CORPUS / "shards"), "--output", str(REPORT)),
        *("--sampling.steps", "20"),
    )
    minutes = (time.monotonic() - started) / 60
    say(f"Done in {minutes:.1f} minutes")
    print(f"corpus  {CORPUS}/clips (mp4), {CORPUS}/shards\nrun     {RUNS}/demo (metrics.jsonl, checkpoints)")
    print(f"model   {RUNS}/demo/export\nplots   {REPORT}/loss.png, {REPORT}/lips.png")


def say(line: str) -> None:
    print(f"\n== {line}", flush=True)


def run(job: str, *arguments: str) -> None:
    code = subprocess.run(
        [sys.executable, str(_checkout.CHECKOUT / "jobs" / job), *arguments], check=False
    ).returncode
    if code:
        sys.exit(f"jobs/{job} failed with exit code {code}")


if __name__ == "__main__":
    main()
