"""TGI's routes, and those of the clouds that serve its containers, as a plugin."""

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse

from infercore.hookspecs import hookimpl
from infercore_api.router.health import add_health
from infercore_api.router.problems import FlatError, documented
from infercore_api.router.sagemaker import add_sagemaker
from infercore_api.router.state import RouterState
from infercore_api.router.tgi_generate import add_generation
from infercore_api.router.tokenization import add_tokenization
from infercore_api.router.validation import (
    MAX_LOGIT_BIAS,
    MAX_MESSAGES,
    MAX_STOP_LENGTH,
    MAX_STOP_TOKEN_IDS,
)
from infercore_api.router.vertex import add_vertex
from infercore_api.router.watermark import add_watermark

API_VERSION = (1, 0)


@hookimpl
def register_routes(app: FastAPI, state: RouterState) -> None:
    router = APIRouter(tags=["TGI"], responses=documented(FlatError))
    add_generation(router, state)
    add_sagemaker(router, app)
    add_vertex(router, state)
    add_tokenization(router, state)
    add_watermark(router, state)
    _add_facts(router, state)
    add_health(router, state)
    app.include_router(router)


def _add_facts(router: APIRouter, state: RouterState) -> None:
    @router.get("/info")
    async def info() -> JSONResponse:
        """The model and the limits in force."""
        return JSONResponse(_info(state))


def _info(state: RouterState) -> dict[str, Any]:
    info, options = state.info, state.options
    return {
        "model_id": info.model_id,
        "model_sha": info.revision or None,
        "model_pipeline_tag": "text-generation",
        "model_dtype": info.dtype,
        "model_device_type": info.backend,
        "max_concurrent_requests": options.max_concurrent_requests,
        "max_best_of": options.max_best_of,
        "max_stop_sequences": options.max_stop_sequences,
        "max_stop_length": MAX_STOP_LENGTH,
        "max_stop_token_ids": MAX_STOP_TOKEN_IDS,
        "max_logit_bias": MAX_LOGIT_BIAS,
        "max_messages": MAX_MESSAGES,
        "max_top_n_tokens": options.max_top_n_tokens,
        "max_input_tokens": info.max_input_len,
        "max_total_tokens": info.max_model_len,
        "max_batch_total_tokens": info.kv_tokens,
        "max_batch_prefill_tokens": info.max_batch_tokens,
        "max_batch_size": info.max_num_seqs,
        "validation_workers": options.validation_workers,
        "max_client_batch_size": options.max_client_batch_size,
        "payload_limit": options.payload_limit,
        "watermark_gamma": options.watermark_gamma,
        "watermark_delta": options.watermark_delta,
        "router": "infercore-router",
        "version": options.version,
        "sha": None,
        "docker_label": None,
    }
