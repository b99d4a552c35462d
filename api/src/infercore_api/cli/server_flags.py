"""The flags of the server around the engine: network, watermark, logs, metrics and traces."""

from infercore_api.cli.flag import Flag, flag, ours

NETWORK = "Network"
WATERMARK = "Watermark"
OBSERVABILITY = "Logs, metrics and traces"

SERVER_FLAGS: tuple[Flag, ...] = (
    ours(
        "engine",
        str,
        NETWORK,
        "HOST:PORT of an engine that `infercore engine` serves; by default one is started here.",
        "serve.engine_address",
        default=None,
    ),
    ours(
        "engine-secret-file",
        str,
        NETWORK,
        "File with the secret that the engine of --engine asks for.",
        "serve.engine_secret_file",
    ),
    ours(
        "engine-ca-file",
        str,
        NETWORK,
        "Certificates (PEM) that the engine of --engine is known by; needed beyond loopback.",
        "serve.engine_ca_file",
    ),
    flag(
        "hostname",
        str,
        NETWORK,
        "Address to listen on; 0.0.0.0 for every interface. TGI's variable HOSTNAME is not read: "
        "in containers it holds the container's name.",
        "serve.hostname",
        default="127.0.0.1",
        env="INFERCORE_HOSTNAME",
    ),
    flag(
        "port",
        int,
        NETWORK,
        "Port to listen on. AIP_HTTP_PORT, which Vertex AI sets, goes before PORT.",
        "serve.port",
        default=3000,
        env="AIP_HTTP_PORT PORT",
        aliases=("p",),
        zero=True,
    ),
    ours(
        "grpc-port",
        int,
        NETWORK,
        "Port of the gRPC services, on the same address; by default there are none.",
        "router.grpc_port",
    ),
    flag(
        "api-key",
        list[str],
        NETWORK,
        "Key that every request must carry, except for health; may be given several times. The "
        "variable keeps it off the command line, and holds several with spaces between them.",
        "router.api_keys",
        default=None,
        secret=True,
    ),
    ours(
        "api-key-file",
        str,
        NETWORK,
        "File of further keys, one per line; read again when it changes.",
        "router.api_key_file",
    ),
    ours(
        "allowed-host",
        list[str],
        NETWORK,
        "Name or address by which clients call the server, with or without the port; may be given "
        "several times. Requests with another Host header are refused; by default none is.",
        "router.allowed_hosts",
        default=None,
    ),
    flag(
        "cors-allow-origin",
        list[str],
        NETWORK,
        "Origin whose pages may call the server, * for any; may be given several times. By "
        "default none may.",
        "router.cors_allow_origin",
        default=None,
    ),
    flag(
        "vertex-predict-route",
        str,
        NETWORK,
        "Another path for /vertex; Vertex AI names it in the variable.",
        "router.vertex_predict_route",
        env="AIP_PREDICT_ROUTE",
    ),
    flag(
        "vertex-health-route",
        str,
        NETWORK,
        "Another path for /health; Vertex AI names it in the variable.",
        "router.vertex_health_route",
        env="AIP_HEALTH_ROUTE",
    ),
    ours(
        "read-timeout",
        float,
        NETWORK,
        "Seconds that a request's headers, and then its body, may take to arrive.",
        "router.read_timeout",
    ),
    ours(
        "write-timeout",
        float,
        NETWORK,
        "Seconds that a client may leave its stream unread before it is aborted.",
        "router.write_timeout",
    ),
    flag(
        "graceful-termination-timeout",
        float,
        NETWORK,
        "Seconds that live requests are given to finish at the end.",
        "serve.graceful_timeout",
        default=90.0,
        aliases=("g",),
        zero=True,
    ),
    flag(
        "json-output",
        bool,
        OBSERVABILITY,
        "Log JSON lines. LOG_LEVEL (error, warning, info, debug) sets how much.",
        "serve.json_output",
        default=False,
    ),
    ours(
        "vllm-metrics",
        bool,
        OBSERVABILITY,
        "Serve metrics under vLLM's names too, for routers and autoscalers that read those.",
        "router.vllm_metrics",
    ),
    flag(
        "otlp-endpoint",
        str,
        OBSERVABILITY,
        "OpenTelemetry collector that traces are sent to, such as http://localhost:4317. Variables "
        "of OpenTelemetry (OTEL_EXPORTER_OTLP_ENDPOINT and the others) are read too.",
        "router.otlp_endpoint",
    ),
    flag(
        "otlp-service-name",
        str,
        OBSERVABILITY,
        "The service that traces say they are of.",
        "router.otlp_service_name",
        env="OTLP_SERVICE_NAME OTEL_SERVICE_NAME",
    ),
    flag(
        "watermark-gamma",
        float,
        WATERMARK,
        "Share of the vocabulary that is green after each token; between 0 and 1.",
        "router.watermark_gamma",
    ),
    flag(
        "watermark-delta",
        float,
        WATERMARK,
        "What the logits of green tokens gain.",
        "router.watermark_delta",
    ),
    ours(
        "watermark-key",
        str,
        WATERMARK,
        "Secret of marked texts; by default one that everybody knows. The variable or the file "
        "keeps it off the command line.",
        "router.watermark_key",
        default=None,
        secret=True,
    ),
    ours(
        "watermark-key-file",
        str,
        WATERMARK,
        "File that holds the secret; spaces and line ends around it do not count.",
        "serve.watermark_key_file",
    ),
)
