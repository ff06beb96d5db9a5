"""Routes of other vendors' APIs: Anthropic's, Ollama's, SageMaker's and vLLM's own."""
