"""From an HTTP request to engine requests: capacity, body, sampling parameters, prompts."""
