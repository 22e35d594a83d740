"""The serving process over a fake engine, for tests of signals: `python -m tests.server.fake_server JSON`.

JSON: {"settings": {...}, "step_s": seconds a token, "load_s": seconds to load, "n_ctx": tokens, "fail": a message for
loading to fail with, "dies": whether every step fails}.
Exit codes are those of the command line: 2 for an address in use, 3 for a model that does not load.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from service.api.app import create_app
from service.engine.async_engine import AsyncEngine, EngineInfo, EngineOptions, Loaded
from service.engine.errors import EngineDead
from service.engine.plan import StepPlan
from service.logs import set_up_logs
from service.server import ListenError, run
from tests.service.api.asgi import settings_of
from tests.service.engine.fakes import VOCAB_SIZE, FakeTokenizer, endless, make_engine


def load(load_s: float = 0.0, step_s: float = 0.0, n_ctx: int = 128, fail: str = "", dies: bool = False) -> Loaded:
    time.sleep(load_s)
    if fail:
        raise ValueError(fail)

    def step(plan: StepPlan) -> None:
        time.sleep(step_s)
        if dies:
            raise MemoryError

    engine = make_engine(choose=endless, num_blocks=256, before_step=step)
    tokens = engine.pool.num_tokens
    info = EngineInfo("fake", 1_700_000_000, VOCAB_SIZE, n_ctx, tokens, 64, 2, 4, tokens)
    return Loaded(engine, FakeTokenizer(), info)


def main(given: dict[str, Any]) -> int:
    settings = settings_of(**{"port": 0, **given.pop("settings", {})})
    set_up_logs(settings.log_format, settings.log_level)
    engine = AsyncEngine(EngineOptions(max_queue=8))
    try:
        return run(create_app(engine, settings), engine, settings, lambda: load(**given))
    except ListenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except EngineDead as error:
        print(f"error: {error.__cause__}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
