"""The routes of vLLM 0.32's servers, whatever switches them on; `tests/engine` compares them with the real one."""

SERVED = {
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "POST /v1/responses"),
    *("POST /v1/messages", "POST /v1/messages/count_tokens", "POST /v1/rerank", "POST /v1/score"),
    *("POST /v1/audio/transcriptions", "POST /tokenize"),
}
ROUTES = SERVED | {
    *("GET /v1/models", "GET /docs", "GET /health", "GET /load", "GET /metrics", "GET /ping", "POST /ping"),
    *("GET /ready", "GET /readyz", "GET /version", "GET /server_info", "GET /kv_event_sources"),
    *("POST /classify", "POST /pooling", "POST /rerank", "POST /score", "POST /v2/rerank", "POST /v2/embed"),
    *("POST /cohere/v2/chat", "POST /cohere/v2/chat/render", "POST /v1/systemone"),
    *("POST /detokenize", "GET /tokenizer_info", "POST /generative_scoring", "POST /invocations"),
    *("POST /inference/v1/generate", "POST /inference/v1/abort_requests", "POST /abort_requests"),
    *("POST /v1/audio/translations", "GET /v1/realtime", "POST /v1/chat/completions/batch"),
    *("POST /v1/chat/completions/render", "POST /v1/chat/completions/derender"),
    *("POST /v1/completions/render", "POST /v1/completions/derender", "POST /v1/messages/render"),
    *("POST /v1/responses/render", "GET /v1/responses/resp_1", "POST /v1/responses/resp_1/cancel"),
    *("POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter"),
    *(
        "POST /collective_rpc",
        "POST /pause",
        "POST /resume",
        "GET /is_paused",
        "POST /sleep",
        "POST /wake_up",
    ),
    *("GET /is_sleeping", "POST /release_kv_cache_memory", "GET /get_world_size", "GET /weight_info"),
    *("POST /init_weight_transfer_engine", "POST /shutdown_weight_transfer_engine", "POST /update_weights"),
    *("POST /start_weight_update", "POST /start_draft_weight_update", "POST /finish_weight_update"),
    *("POST /update_weight_version", "POST /weight_checker"),
    *("POST /reset_prefix_cache", "POST /reset_mm_cache", "POST /reset_encoder_cache"),
    *("POST /start_profile", "POST /stop_profile", "POST /scale_elastic_ep", "POST /is_scaling_elastic_ep"),
    *("POST /fault_tolerance/apply", "GET /fault_tolerance/status"),
}
