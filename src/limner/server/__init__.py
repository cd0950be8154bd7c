"""HTTP: the native API, OpenAI's Images API and AUTOMATIC1111's, over one service. Imports no torch."""
