"""Every statement about access, limits, templates, isolation and disclosure has a test.

A test of this folder names its statement at the start of its docstring; PROVEN names those that
stand elsewhere.
"""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
WANTED = {f"S{number:02}" for number in (*range(1, 17), 20, 21, 22, *range(36, 43))}
PROVEN: dict[str, tuple[str, ...]] = {
    "S01": (
        "api/test_access.py::test_every_route_but_health_needs_a_key",
        "api/test_grpc_access.py::test_keys_are_asked_for",
    ),
    "S02": (
        "api/test_access.py::test_no_spelling_of_a_path_leads_past_the_key",
        "api/test_access.py::test_the_host_header_has_no_say",
        "api/test_access.py::test_other_methods_and_web_sockets_are_refused_too",
    ),
    "S03": (
        "api/test_access.py::test_keys_come_from_a_file_and_change_with_it",
        "api/test_access.py::test_keys_are_not_shown_with_the_options",
        "api/test_access.py::test_a_server_with_keys_of_all_three_sources",
    ),
    "S04": (
        "api/test_access.py::test_every_route_but_health_needs_a_key",
        "api/test_access.py::test_a_header_that_comes_twice_must_say_the_same",
    ),
    "S07": (
        "api/test_access.py::test_pages_of_other_origins_may_call_nothing_by_default",
        "api/test_access.py::test_names_that_clients_may_call_the_server_by",
    ),
    "S08": (
        "api/test_bad_input.py::test_bodies_that_are_no_request",
        "api/test_bad_input.py::test_content_types_lengths_and_methods",
    ),
    "S09": (
        "api/test_bad_input.py::test_values_out_of_range_name_their_parameter",
        "api/test_bad_input.py::test_prompts_that_do_not_fit_say_the_arithmetic",
        "api/test_more_routes.py::test_a_stop_text_has_a_length",
    ),
    "S13": (
        "unit/test_engine.py::test_a_full_queue_refuses_new_requests_but_not_resumed_ones",
        "unit/test_engine.py::test_a_queue_is_bounded_by_tokens_and_takes_any_prompt_when_it_is_empty",
        "unit/test_engine.py::test_a_refusal_says_how_long_the_queue_takes_at_its_pace",
        "api/test_grpc.py::test_too_much_at_once_says_when_to_try_again",
    ),
    "S14": (
        "unit/test_chat_template.py::test_only_the_sandbox_makes_templates",
        "unit/test_chat_template.py::test_what_a_template_may_not_do",
        "unit/test_chat_template.py::test_internals_are_undefined",
    ),
    "S15": (
        "unit/test_chat_template.py::test_endless_work_is_stopped_and_delays_nobody",
        "unit/test_chat_template.py::test_a_killed_worker_is_replaced",
    ),
    "S16": (
        "unit/test_chat_template.py::test_variables_that_the_template_does_not_read_are_refused",
    ),
    "S20": (
        "api/test_fuzz.py::test_calls_by_the_document",
        "api/test_fuzz.py::test_bytes_that_are_hardly_requests",
        "api/test_bad_input.py::bystander",
        "api/test_router.py::test_no_value_of_any_field_is_the_servers_fault",
        "api/test_grpc.py::test_damaged_messages_harm_nobody",
    ),
    "S21": ("api/test_bad_input.py::bystander",),
    "S36": ("api/test_grpc.py::test_an_unexpected_error_gives_nothing_away",),
    "S37": (
        "api/test_access_log.py::test_a_line_per_request_and_no_prompt",
        "api/test_traces.py::test_the_access_line_names_the_trace_and_nothing_tells_a_prompt",
    ),
    "S39": (
        "api/test_router.py::test_a_client_that_does_not_read_is_given_up",
        "api/test_grpc.py::test_who_does_not_read_is_cut",
    ),
    "S41": (
        "api/test_streams.py::test_a_client_that_leaves_frees_what_it_held",
        "api/test_grpc_access.py::test_cancelling_frees_the_kv_blocks",
    ),
    "S42": ("api/test_metrics.py::test_what_requests_say_makes_no_series",),
}


def functions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_every_statement_has_a_test() -> None:
    named: set[str] = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        for function in functions(file):
            if function.name.startswith("test_") and file.name != Path(__file__).name:
                found = re.match(r"(S\d\d(?:, S\d\d)*): ", ast.get_docstring(function) or "")
                assert found, f"{file.name}: {function.name} names no statement"
                named |= set(found[1].split(", "))
    assert named | PROVEN.keys() == WANTED


def test_what_is_said_to_prove_a_statement_is_there() -> None:
    for places in PROVEN.values():
        for place in places:
            file, _, name = place.partition("::")
            assert name in {function.name for function in functions(TESTS / file)}, place
