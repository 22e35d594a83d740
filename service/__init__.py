"""The serving process: settings and command line, the HTTP rooms (`service.api`) and the engine (`service.engine`)."""
