"""Define the options of `jobs/bench.py serve`."""

import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _checkout import PY_MODULES
from benches.results import BENCHMARKS, save_results
from xactor.model_folder import BOX, located

if TYPE_CHECKING:
    from benches.serve import Load

# Length of the speech in the requests that measure the time to the first fragment, in seconds.
_FIRST_FRAGMENT_SPEECH_S = 2.0


@dataclass(frozen=True, kw_only=True)
class BenchServe:
    """Measure the service: time to the first fragment, throughput under rising load, and memory.

    A fragment is a piece of an mp4 that a player can show before the rest exists. The time to the first fragment is
    measured for the service, for the pipeline without a service, and for an empty graph: the service's deployments
    without models. The command starts its own Ray.

    Example: python jobs/bench.py serve --rates 0.25 0.5 1 2 4 --seconds 30 --soak-s 600
    """

    model: str = BOX
    """Model folder. `box` is the model that comes with the package."""
    clip: Path = Path("demo/corpus/clips/test/test-0001.mp4")
    """Video whose first frame is the portrait and whose sound is the speech."""
    speech_s: float = 4
    """Length of the speech in the requests of the load test, in seconds."""
    rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Rates of the load test, in requests per second. They are measured one after another."""
    seconds: float = 30
    """Duration of each rate, in seconds."""
    requests: int = 40
    """Number of rounds that measure the time to the first fragment. A round sends one request to the service and one to
    the empty graph, and runs the pipeline once."""
    motion_steps: int = 10
    """DDIM steps of a chunk of motion, within 1..1000."""
    render_steps: int = 1
    """DDIM steps of a window of frames, within 0..1000. 0 shows the portrait as the guess network moves it, if the
    model has such a network."""
    max_videos: int = 4
    """Maximum number of videos that the service makes concurrently. The service refuses further requests."""
    soak_s: float = 600
    """Duration of the test for growing memory, at the highest rate, in seconds; 0 leaves the test out."""
    output: Path = BENCHMARKS / "serve.json"
    """JSON file for the figures."""

    def execute(self) -> int:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray import serve

        from benches.serve import held_up, under_load
        from xactor_platform.cluster.local import free_port

        if not self.clip.is_file():
            raise ValueError(f"{self.clip}: no such file")
        runtime_env = {"py_modules": PY_MODULES}
        ray.init(address="local", num_cpus=4, log_to_driver=False, runtime_env=runtime_env)
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        url = f"http://127.0.0.1:{port}"
        first_fragment = self._first_fragments(url)
        print(json.dumps(first_fragment, indent=2), flush=True)
        load, rows = self._load(self.speech_s), []
        for rate in self.rates:
            rows.append(under_load(url, load, rate=rate, seconds=self.seconds))
            print(json.dumps(rows[-1]), flush=True)
        saturation = held_up(rows)
        print(json.dumps(saturation), flush=True)
        soak = self._soak(url, load) if self.soak_s else None
        figures = {
            "video_s": load.seconds,
            **self._fields,
            "max_videos": self.max_videos,
            "first_fragment": first_fragment,
            "load": rows,
            "past_saturation": saturation,
            "soak": soak,
        }
        save_results(self.output, figures)
        serve.shutdown()
        ray.shutdown()
        return 0

    @property
    def _fields(self) -> dict[str, int]:
        """Return the options in the form of every request, next to the picture and the sound."""
        return {"motion_steps": self.motion_steps, "render_steps": self.render_steps, "render_cfg": 1}

    def _load(self, seconds: float) -> "Load":
        """Return the request to repeat, with the clip's first `seconds` of speech."""
        from PIL import Image

        from benches.serve import Load, wav
        from xactor.media import read_audio, read_frames
        from xactor.rates import SAMPLE_RATE_HZ

        portrait = io.BytesIO()
        Image.fromarray(next(read_frames(self.clip))).save(portrait, "PNG")
        samples = read_audio(self.clip)[: round(seconds * SAMPLE_RATE_HZ)]
        return Load(
            image=portrait.getvalue(),
            audio=wav(samples),
            seconds=len(samples) / SAMPLE_RATE_HZ,
            fields={name: str(value) for name, value in self._fields.items()},
        )

    def _first_fragments(self, url: str) -> dict[str, float]:
        """Deploy the service and an empty graph, and compare their times to the first fragment with the pipeline's.

        Returns:
            The figures of `added`.
        """
        import torch
        from ray import serve

        from benches.serve import added, empty_graph
        from xactor.pipeline import XActorPipeline
        from xactor_serving.app import build
        from xactor_serving.arguments import Arguments, Limits

        limits = Limits(max_videos=self.max_videos, max_videos_per_key=self.max_videos)
        arguments = Arguments(model=str(Path(located(self.model)).resolve()), limits=limits)
        serve.run(build(arguments), name="xactor")
        motion = serve.get_deployment_handle("motion", "xactor").facts.remote().result()
        render = serve.get_deployment_handle("render", "xactor").facts.remote().result()
        serve.run(empty_graph(motion, render), name="empty", route_prefix="/empty")
        pipeline = XActorPipeline.from_pretrained(self.model)
        # Ray gives a replica as many threads as CPUs, so the pipeline gets the same number.
        torch.set_num_threads(max(1, int(arguments.cpus)))
        with tempfile.TemporaryDirectory() as folder:
            compared = (url, f"{url}/empty", pipeline, self._load(_FIRST_FRAGMENT_SPEECH_S), Path(folder))
            # Warm up with portraits 0 to 2. The service caches them, so the counted rounds start with portrait 3.
            added(*compared, rounds=3)
            return added(*compared, rounds=self.requests, first=3)

    def _soak(self, url: str, load: "Load") -> dict[str, Any]:
        """Measure how the memory grows at the highest rate, and return the figures of `memory_under_load`."""
        from benches.serve import memory_under_load

        # Compare the second tenth of the time with the last tenth.
        part_s = self.soak_s / 10
        rate = max(self.rates)
        soak = memory_under_load(url, load, rate=rate, seconds=self.soak_s, part_s=part_s)
        print(json.dumps(soak), flush=True)
        return soak
