"""placeholder"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def limited_protocol(timeout: float) -> type[HttpToolsProtocol]:
    """x"""
    return HttpToolsProtocol
