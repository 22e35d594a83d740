"""HTTP: bodies, routes, streams and errors. Knows the engine's verbs, and neither torch nor the model."""
