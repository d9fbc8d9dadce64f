"""The data plane: callers' requests to model servers, metered."""
