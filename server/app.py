"""The web application, assembled in one place."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from server.files.batches import Batches
from server.http.failures import install_handlers
from server.middleware.custom import load_middleware
from server.middleware.gate import Gate
from server.middleware.observe import Observe
from server.middleware.request_id import REQUEST_ID, RequestId
from server.openapi import install_openapi
from server.routes import control, operations, page, tokens
from server.routes.openai import batches, chat, completions, conversations, decisions, files, models, responses
from server.routes.vendors import invocations, messages, ollama, token_generation
from server.state import ServerState
from tandem import __version__

ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    conversations.router,
    files.router,
    batches.router,
    messages.router,
    decisions.router,
    token_generation.router,
    invocations.router,
    tokens.router,
    models.router,
    operations.router,
)


def create_app(state: ServerState) -> FastAPI:
    """Put routes, errors and middleware together around ``state``, which may still be loading its model.

    Whoever builds the state starts its engine (``server.loading``) and closes it; the application has no life cycle
    of its own.
    """
    config = state.config
    has_docs = not config.disable_fastapi_docs
    app = FastAPI(
        title="Tandem",
        version=__version__,
        root_path=config.root_path,
        docs_url="/docs" if has_docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if has_docs else None,
        redirect_slashes=False,
    )
    app.state.tandem = state
    state.batches = Batches(state, app)
    for router in ROUTERS:
        app.include_router(router)
    if config.enable_dev_mode:
        app.include_router(control.router)
    if config.profiler_config is not None:
        app.include_router(control.profile_router)
    if config.enable_tokenizer_info_endpoint:
        app.include_router(tokens.info_router)
    if config.enable_ollama_api:
        app.include_router(ollama.router)
    if not config.disable_ui:
        app.include_router(page.page_router())
    install_handlers(app)
    install_openapi(app)

    # each one added goes around those before it
    app.add_middleware(Gate, state=state)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=config.allowed_origins,
        allow_methods=config.allowed_methods,
        allow_headers=config.allowed_headers,
        allow_credentials=config.allow_credentials,
        expose_headers=(REQUEST_ID, "x-tandem-ignored-fields", "retry-after", "request-id"),
    )
    app.add_middleware(Observe, state=state)
    if config.enable_request_id_headers:
        app.add_middleware(RequestId)
    for path in config.middleware:
        app.add_middleware(load_middleware(path))
    return app
