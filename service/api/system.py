"""Health, the list of models, and what this server has switched off.

`/health` keeps the written contract. Liveness asks whether the process and its loop turn, readiness whether a request
sent now would be served: neither ever generates a token.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from service.api.errors import ApiError
from service.api.exchange import service_of
from service.api.openapi import get_docs, head_docs, unserved_docs
from service.api.shapes.system import Health, ModelCard, ModelList
from service.engine.async_engine import EngineInfo
from service.engine.errors import QueueFull, Unavailable

router = APIRouter(tags=["system"])
OK = {"status": "ok"}


@router.head("/health", **head_docs("Can it serve?"))
@router.get("/health", **get_docs("Can it serve?", Health))
@router.get("/v1/health", **get_docs("Can it serve?", Health))
async def health(request: Request) -> JSONResponse:
    service_of(request).engine.raise_if_unavailable()
    return JSONResponse(OK)


@router.get("/health/live", **get_docs("Does the process turn?", Health, can_be_unavailable=False))
async def live() -> dict[str, str]:
    return OK


@router.get("/health/ready", **get_docs("Would a request be admitted now?", Health))
async def ready(request: Request) -> dict[str, str]:
    engine = service_of(request).engine
    engine.raise_if_unavailable()
    stats, options = engine.stats(), engine.options
    busy_s = float(stats["heartbeat_age_s"])
    if busy_s > options.watchdog_soft_s:
        raise Unavailable(f"one step of the engine has been running for {busy_s:.0f} s", retry_after_s=5)
    if options.max_queue and int(stats["open"]) >= engine.info.max_running + options.max_queue:
        raise QueueFull(options.max_queue)
    return OK


@router.get("/models", **get_docs("The model that is served", ModelList))
@router.get("/v1/models", **get_docs("The model that is served", ModelList))
async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model(_info(request))]}


@router.get(
    "/v1/models/{model_id:path}",
    **get_docs("One model by its id", ModelCard),
    openapi_extra={"parameters": [{"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}]},
)
async def model(request: Request) -> dict[str, Any]:
    info = _info(request)
    if request.path_params["model_id"] != info.model_id:
        raise ApiError(404, "not_found_error", "not_found", "no model of this id is served here", param="model")
    return _model(info)


def _info(request: Request) -> EngineInfo:
    engine = service_of(request).engine
    engine.raise_if_unavailable()
    return engine.info


def _model(info: EngineInfo) -> dict[str, Any]:
    return {
        "id": info.model_id,
        "object": "model",
        "created": info.created,
        "owned_by": "bitnet-serve",
        "max_model_len": info.n_ctx_max,
        "meta": {"vocab_size": info.vocab_size, "n_ctx": info.n_ctx, "n_ctx_max": info.n_ctx_max},
    }


async def _switched_off() -> None:
    message = "this server generates text; it has no model for embeddings or ranking"
    raise ApiError(501, "not_supported_error", "not_supported", message)


for path in ("/embeddings", "/embedding", "/v1/embeddings", "/rerank", "/reranking", "/v1/rerank", "/v1/reranking"):
    router.post(path, **unserved_docs("Switched off"))(_switched_off)
