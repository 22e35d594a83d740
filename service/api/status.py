"""/props, /slots and /metrics: what this server is and what it is doing. Never what anybody asked it.

llama.cpp's shapes for the first two. A slot is a place in the batch, as there; here the context is not divided among
them.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.errors import invalid_parameter
from service.api.exchange import service_of
from service.api.openapi import get_docs, ref
from service.api.parameters import generation_settings, read_limits, read_sampling
from service.api.schemas import Generation
from service.api.shapes.system import Props, Slot
from service.api.unserved import show
from service.engine.errors import QueueFull
from service.engine.progress import Progress
from service.metrics import CONTENT_TYPE
from service.version import own_version

router = APIRouter(tags=["system"])
SILENT = Generation.model_validate({})  # a request that asks for nothing


@router.get("/props", **get_docs("The model, its defaults and its template", Props))
async def props(request: Request) -> dict[str, Any]:
    service = service_of(request)
    engine, info = service.engine, service.engine.info
    facts = await engine.with_tokenizer(lambda tools: tools.describe())
    limits = read_limits(SILENT, info, service.settings)
    params = read_sampling(SILENT, limits, info, service.settings)
    defaults = {**generation_settings(params, limits, info), "seed": service.settings.default_seed}
    return {
        "default_generation_settings": {"params": defaults, "n_ctx": info.n_ctx},
        "total_slots": info.max_running,
        "model_alias": info.model_id,
        "model_path": info.model_id,
        "n_ctx_max": info.n_ctx_max,
        "kv_tokens": info.kv_tokens,
        "vocab_size": info.vocab_size,
        "chat_template": facts["chat_template"] or "",
        "bos_token": facts["bos_token"] or "",
        "eos_token": facts["eos_token"] or "",
        "modalities": {"vision": False, "audio": False},
        "build_info": f"bitnet-serve {own_version()}",
        "is_sleeping": False,
    }


@router.get(
    "/slots",
    **get_docs("What is running, without its text", {"type": "array", "items": ref(Slot)}),
    openapi_extra={
        "parameters": [
            {
                "name": "fail_on_no_slot",
                "in": "query",
                "description": "1 answers 503 while no slot is free",
                "schema": {"type": "string", "enum": ["0", "1"]},
            }
        ]
    },
)
async def slots(request: Request) -> list[dict[str, Any]]:
    engine = service_of(request).engine
    engine.raise_if_unavailable()
    wish = request.query_params.get("fail_on_no_slot", "0")
    if wish not in ("0", "1"):
        raise invalid_parameter("fail_on_no_slot", f"invalid 'fail_on_no_slot': should be 0 or 1 (got {show(wish)})")
    info, running = engine.info, engine.progress()
    guesses = service_of(request).settings.draft_max > 0
    if wish == "1" and len(running) >= info.max_running:
        raise QueueFull(info.max_running)
    idle = range(len(running), info.max_running)
    busy = [_busy(i, progress, guesses) for i, progress in enumerate(running)]
    return busy + [_idle(i, info.n_ctx, guesses) for i in idle]


def _idle(slot: int, n_ctx: int, guesses: bool) -> dict[str, Any]:
    return {"id": slot, "n_ctx": n_ctx, "speculative": guesses, "is_processing": False}


def _busy(slot: int, progress: Progress, guesses: bool) -> dict[str, Any]:
    return {
        **_idle(slot, progress.n_ctx, guesses),
        "is_processing": True,
        "generation": progress.id.partition("/")[0],
        "n_prompt_tokens": progress.num_prompt,
        "n_prompt_tokens_processed": min(progress.num_computed, progress.num_prompt),
        "n_prompt_tokens_cache": progress.num_cached,
        "next_token": [{"n_decoded": progress.num_generated, "n_remain": progress.num_left}],
    }


@router.get(
    "/metrics",
    **get_docs("Prometheus metrics", {"type": "string"}, media_type="text/plain", can_be_unavailable=False),
    response_class=Response,
)
async def metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.exposition(), media_type=CONTENT_TYPE)
