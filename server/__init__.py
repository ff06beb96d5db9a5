"""The HTTP server: FastAPI in front of an engine that it knows only through ``tandem.process.client``.

``server.run.serve`` is what ``tandem serve`` runs; ``server.app.create_app`` builds the application alone.
"""
