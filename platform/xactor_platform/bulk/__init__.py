"""Build pipelines that map files through pools of Ray actors: stages, messages, pools, the tally and the bill.

A pipeline needs its messages, its stages, and a driver that records the results:

    @dataclass(frozen=True, kw_only=True)
    class Measured(Message):
        finished: ClassVar[bool] = True
        uri: str
        error: str = ""

    class Measure(Stage):
        name = "measure"

        def work(self, message):
            ...
            yield Measured(uri=message)

        def failed(self, message, error):
            return Measured(uri=message, error=str(error))

    pipeline = Pipeline(steps=[Step(stage=Measure, pool=Pool(max=8))], start_timeout_s=900)
    for result in pipeline.run(uris):
        tally.add_seconds(result.stage_s)

`run_passes` retries messages that were lost because their actors died. `precompute/latents.py` is the shortest complete
example.
"""
