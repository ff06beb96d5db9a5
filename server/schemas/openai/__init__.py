"""Bodies of OpenAI's routes."""
