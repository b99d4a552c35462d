"""The router's gRPC side: our generation service, KServe's, health and reflection."""
