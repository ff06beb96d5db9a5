"""From a prompt and sampling parameters to typed results: what the server and ``LLM`` share."""
