"""The composition root: settings -> wing -> model -> runner -> engine -> application -> server.

The one place that knows every floor. Torch is imported in the engine thread, while the server already answers 503.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

import bitnet_model
from bitnet_model.config import ModelConfig
from bitnet_model.errors import BackendUnavailable, CheckpointError
from bitnet_model.hub import resolve_model
from service.api.app import create_app
from service.config import ConfigError, Settings
from service.engine.async_engine import AsyncEngine, EngineInfo, EngineOptions, Loaded
from service.engine.blocks import BLOCK_TOKENS, BlockPool
from service.engine.engine import Engine
from service.engine.errors import EngineDead
from service.engine.proof import Trial, prove
from service.engine.scheduler import MAX_ROUNDS, SchedulerLimits
from service.fingerprint import fingerprint
from service.logs import set_up_logs
from service.server import EXIT_ENGINE_DEAD, ListenError, run
from service.sizes import Sizes, settle_sizes
from service.warmup import warm_up

if TYPE_CHECKING:
    from bitnet_model.ops import Ops
    from service.engine.tokenizer import Tokenizer

EXIT_CONFIG = 2
EXIT_CHECKPOINT = 3

DEMO_ID = "bitnet-demo"

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until told to stop; the process's exit status (see service/cli.py)."""
    set_up_logs(settings.log_format, settings.log_level)
    engine = AsyncEngine(EngineOptions(max_queue=settings.max_queue), on_hang=lambda: os._exit(EXIT_ENGINE_DEAD))
    try:
        return run(create_app(engine, settings), engine, settings, lambda: load(settings))
    except ListenError as error:
        logger.error("%s", error)
        return EXIT_CONFIG
    except EngineDead as error:
        return _exit_status(error.__cause__)


def _exit_status(cause: BaseException | None) -> int:
    """What loading failed of; its message is in the log already."""
    if isinstance(cause, CheckpointError):
        return EXIT_CHECKPOINT
    if isinstance(cause, ConfigError | BackendUnavailable):
        return EXIT_CONFIG
    return EXIT_ENGINE_DEAD


def load(settings: Settings) -> Loaded:
    """Everything that takes long, in the engine thread. Raises ConfigError, CheckpointError, BackendUnavailable."""
    started_s = time.monotonic()
    folder, model_id = locate(settings)
    config = ModelConfig.from_folder(folder)

    from bitnet_model.checkpoint import load_model
    from service.engine.grammar_compiler import GrammarCompiler
    from service.engine.runner import ModelRunner

    ops = ops_for(settings)
    sizes = sizes_for(ops, settings, config, folder)
    head_dtype = head_dtype_for(ops, settings)
    with ThreadPoolExecutor(1, "tokenizer") as reader, loading_bar(model_id) as progress:
        reading = reader.submit(load_tokenizer, folder, config)  # the model's file is read and packed without the GIL
        model = load_model(folder, ops, head_dtype=head_dtype, progress=progress, max_positions=sizes.n_ctx_max)
        tokenizer = reading.result()
    pool = BlockPool(-(-sizes.kv_tokens // BLOCK_TOKENS))
    runner = ModelRunner(
        model, ops, num_blocks=pool.num_blocks, block_tokens=pool.block_tokens, kv_dtype=settings.kv_cache_dtype
    )
    n_threads = int(ops.describe()["threads"])
    if ops.wants_proof:
        trial = Trial(config.vocab_size, sizes.n_ctx_max, pool.num_blocks, pool.block_tokens, n_threads)
        prove(model, partial(trial.run, runner))
        if not trial.is_exact(runner):
            logger.error("this device computes a token by itself and in a prompt differently: answers are not exact")
    most_rows = max(sizes.max_running, 1 + settings.draft_max)  # a guess is drawn as a row of its own
    warm_up(runner, max_rows=most_rows, n_ctx=sizes.n_ctx_max, max_tokens=settings.n_batch)
    limits = SchedulerLimits(
        sizes.max_running,
        settings.n_batch,
        n_threads,
        settings.step_ms,
        MAX_ROUNDS,
        settings.draft_max,
    )
    engine = Engine(runner, tokenizer, pool, limits)
    settle_memory()
    report = ", ".join(f"{part} {num_bytes / 1e6:.1f} MB" for part, num_bytes in model.memory_report().items())
    logger.info("loaded %s in %.1f s: %s", model_id, time.monotonic() - started_s, report)
    logger.info(
        "n_ctx %d (at most %d), KV cache of %d tokens, %d requests in a step, %d threads",
        sizes.n_ctx,
        sizes.n_ctx_max,
        pool.num_tokens,
        sizes.max_running,
        n_threads,
    )
    info = EngineInfo(
        model_id=model_id,
        created=int(time.time()),
        vocab_size=config.vocab_size,
        n_ctx=sizes.n_ctx,
        n_ctx_max=sizes.n_ctx_max,
        n_batch=settings.n_batch,
        n_threads=n_threads,
        max_running=sizes.max_running,
        kv_tokens=pool.num_tokens,
        eos_ids=tuple(sorted(tokenizer.eos_ids)),
        fingerprint=fingerprint(folder, [ops.describe()["wing"], head_dtype, settings.kv_cache_dtype]),
    )
    return Loaded(engine, tokenizer, info, GrammarCompiler(tokenizer))


def settle_memory() -> None:
    """Free what loading left behind, and take what stays out of the collector's rounds, which stop every thread.

    The C library keeps freed memory for itself; reading a vocabulary of 128,000 tokens leaves 45 MB so (2026-11).
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def ops_for(settings: Settings) -> Ops:
    """The wing that the settings ask for; imports torch. Raises BackendUnavailable."""
    from bitnet_model.ops import load_ops

    return load_ops(settings.backend, isa=settings.cpu_isa, threads=settings.n_threads, dense=settings.dense_weights)


def sizes_for(ops: Ops, settings: Settings, config: ModelConfig, folder: Path) -> Sizes:
    """Context lengths and the size of the KV cache on this wing. Raises ConfigError."""
    weight_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    device_kv_tokens = ops.cache_tokens(
        config.num_layers, config.num_kv_heads, config.head_dim, settings.kv_cache_dtype, weight_bytes
    )
    return settle_sizes(settings, config.max_position_embeddings, device_kv_tokens)


def head_dtype_for(ops: Ops, settings: Settings) -> str:
    """The head's type: the one asked for, or the wing's default. Raises ConfigError."""
    wanted = settings.head_dtype or ops.head_dtypes[0]
    if wanted not in ops.head_dtypes:
        available = ", ".join(ops.head_dtypes)
        raise ConfigError(f"head_dtype {wanted} is not available on the {ops.name} backend; available: {available}")
    return wanted


def load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The checkpoint's tokenizer. Raises CheckpointError."""
    from service.engine.tokenizer import Tokenizer, TokenizerError

    try:
        return Tokenizer.from_folder(folder, config.eos_token_ids, vocab_size=config.vocab_size)
    except TokenizerError as error:
        raise CheckpointError(folder, [str(error)]) from error


def locate(settings: Settings) -> tuple[Path, str]:
    """The checkpoint's folder, downloaded if need be, and the name clients see."""
    if settings.model is None:
        return Path(bitnet_model.__file__).parent / "demo", DEMO_ID
    folder = resolve_model(settings.model, settings.revision, settings.offline)
    is_folder = Path(settings.model).expanduser().is_dir()
    return folder, folder.resolve().name if is_folder else settings.model


@contextmanager
def loading_bar(model_id: str, verb: str = "loading") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, elsewhere a log line a tenth; yields what to call with (done, total) bytes."""
    if not sys.stderr.isatty():
        shown = -1

        def log(done: int, total: int) -> None:
            nonlocal shown
            tenth = 10 * done // max(total, 1)
            if tenth > shown and total > 100e6:
                shown = tenth
                logger.info("%s %s: %d %% of %.0f MB", verb, model_id, 10 * tenth, total / 1e6)

        yield log
        return
    columns = (TextColumn(verb + " {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(model_id, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
