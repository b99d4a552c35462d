"""The pages of gRPC and of KServe's protocol name what is there: services, methods, statuses."""

import re

import pytest

from infercore_api.router.grpc import generation_service, inference_service
from infercore_api.router.grpc.call import CODES
from infercore_api.router.kserve_generate import TextBody
from infercore_api.router.kserve_infer import InferParameters
from infercore_api.router.kserve_rest import InferBody
from infercore_api.router.tgi_schema import Parameters
from pages import code_spans, page

SERVICES = (generation_service.SERVICE, inference_service.SERVICE)
WITHOUT_CODES = {"INTERNAL", "ABORTED"}  # for all other statuses, and for who does not read


def test_every_service_and_method_is_there() -> None:
    spans = code_spans(page("reference/grpc.md"))
    for service in SERVICES:
        assert service.full_name in spans
        assert {method.name for method in service.methods} <= spans


def test_every_status_is_there() -> None:
    named = set(re.findall(r"^\| `([A-Z_]+)` \|", page("reference/grpc.md"), re.MULTILINE))
    assert named == {code.name for code in CODES.values()} | WITHOUT_CODES


@pytest.mark.parametrize("body", [InferBody, TextBody])
def test_every_field_is_there(body: type[InferBody | TextBody]) -> None:
    assert body.model_fields.keys() <= code_spans(page("reference/kserve.md"))


def test_every_parameter_beyond_generates_is_there() -> None:
    more = InferParameters.model_fields.keys() - Parameters.model_fields.keys()
    assert more <= code_spans(page("reference/kserve.md"))
