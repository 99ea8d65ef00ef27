"""The service's times: to the first fragment beside the bare pipeline and an empty graph, and under a rising load.

    python jobs/bench_serve.py [--model demo/model] [--rates 0.25 0.5 1 2 4] [--seconds 30] [--soak-s 600]

Starts Ray by itself. Writes infra/benchmarks/serve.json.
"""

import io
import json
import os
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import _checkout

import torch
import tyro
from PIL import Image

from xactor_platform.cluster.local import free_port
from xactor_platform.cluster.environment import environment

_FIRST_S = 2.0  # of sound, where only the first fragment counts


@dataclass(frozen=True, kw_only=True)
class BenchServe:
    """Which model, portrait and speech, and how hard."""

    model: Path = _checkout.CHECKOUT / "demo/model"
    clip: Path = _checkout.CHECKOUT / "demo/corpus/clips/test/test-0001.mp4"
    """Its first frame is the portrait, its sound the speech."""
    speech_s: float = 4
    rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Requests a second."""
    seconds: float = 30
    """At each rate."""
    requests: int = 40
    """For the time to the first fragment of two seconds: by turns with the bare pipeline and an empty graph."""
    motion_steps: int = 10
    render_steps: int = 1
    max_videos: int = 4
    soak_s: float = 600
    """Under the highest rate, for the memory's growth; 0 leaves that out."""
    output: Path = _checkout.CHECKOUT / "infra/benchmarks/serve.json"


def main(args: BenchServe) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    from xactor_serving.app import Arguments, build
    from benches import serve as bench
    from benches.serve import Load
    from xactor.rates import SAMPLE_RATE_HZ
    from xactor.media import read_audio, read_frames
    from xactor.pipeline import XActorPipeline

    if not args.clip.is_file():
        sys.exit(f"error: {args.clip}: no such file")
    portrait = io.BytesIO()
    Image.fromarray(next(read_frames(args.clip))).save(portrait, "PNG")
    port = free_port()
    ray.init(
        address="local", num_cpus=4, log_to_driver=False, runtime_env={"py_modules": _checkout.PY_MODULES}
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    url = f"http://127.0.0.1:{port}"
    fields = {"motion_steps": args.motion_steps, "render_steps": args.render_steps, "render_cfg": 1}

    def load_of(seconds: float) -> Load:
        samples = read_audio(args.clip)[: round(seconds * SAMPLE_RATE_HZ)]
        speech = io.BytesIO()
        with wave.open(speech, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE_HZ)
            file.writeframes((samples * 32767).clip(-32768, 32767).astype("<i2").tobytes())
        return Load(
            image=portrait.getvalue(),
            audio=speech.getvalue(),
            seconds=len(samples) / SAMPLE_RATE_HZ,
            fields={name: str(value) for name, value in fields.items()},
        )

    limits = {"max_videos": args.max_videos, "max_videos_per_key": args.max_videos}
    arguments = Arguments(model=str(args.model.resolve()), limits=limits)
    serve.run(build(arguments), name="xactor")
    motion = serve.get_deployment_handle("motion", "xactor").facts.remote().result()
    render = serve.get_deployment_handle("render", "xactor").facts.remote().result()
    serve.run(bench.empty_graph(motion, render), name="empty", route_prefix="/empty")
    pipeline = XActorPipeline.from_pretrained(args.model)
    torch.set_num_threads(max(1, int(arguments.cpus)))  # as Ray gives a replica: the same work on as much
    with tempfile.TemporaryDirectory() as folder:
        ways = (url, f"{url}/empty", pipeline, load_of(_FIRST_S), Path(folder))
        bench.added(*ways, rounds=3)  # warm
        first = bench.added(*ways, rounds=args.requests, first=3)
    print(json.dumps(first, indent=2), flush=True)
    load, rows = load_of(args.speech_s), []
    for rate in args.rates:
        rows.append(bench.under_load(url, load, rate=rate, seconds=args.seconds))
        print(json.dumps(rows[-1]), flush=True)
    held_up = bench.held_up(rows)
    print(json.dumps(held_up), flush=True)
    soak = None
    if args.soak_s:
        part_s = args.soak_s / 10
        soak = bench.memory_under_load(url, load, rate=max(args.rates), seconds=args.soak_s, part_s=part_s)
        print(json.dumps(soak), flush=True)
    report = {
        "command": " ".join(["python", "jobs/bench_serve.py", *sys.argv[1:]]),
        **environment(),
        "video_s": load.seconds,
        **fields,
        "max_videos": args.max_videos,
        "first_fragment": first,
        "load": rows,
        "past_saturation": held_up,
        "soak": soak,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(tyro.cli(BenchServe))
