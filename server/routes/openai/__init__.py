"""OpenAI's routes, one router a family."""
