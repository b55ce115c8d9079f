"""Faults of downloads: where they may go, what they take, and what they tell of secrets."""

from __future__ import annotations

from tests.mutations.planting import Fault

SOURCE_FAULTS = (
    Fault(
        "egress: only the first address of a name is checked",
        "datamanager/sources/network/egress_guard.py",
        "        for address in addresses:\n            if any(",
        "        for address in addresses[:1]:\n            if any(",
        ("tests/unit/test_guard.py::test_every_answer_must_be_public",),
    ),
    Fault(
        "egress: the guard is skipped after a redirect",
        "datamanager/sources/http/client.py",
        "        addresses = guard.check(target.host, target.port)[:MAX_ADDRESSES]\n",
        "        if target.url == self.terms.target.url:\n"
        "            addresses = guard.check(target.host, target.port)[:MAX_ADDRESSES]\n"
        "        else:\n"
        "            addresses = guard._addresses(target.host, target.port)\n",
        ("tests/integration/test_http_routes.py::test_a_redirect_to_loopback_sends_nothing_there",),
    ),
    Fault(
        "egress: what a name resolves to is not compared with DM_DOWNLOAD_DENY",
        "datamanager/sources/network/egress_guard.py",
        "            self.refuse_denied(canonical, port, addresses)\n",
        "",
        ("tests/unit/test_guard.py::test_one_denied_answer_of_several_is_enough",),
    ),
    Fault(
        "http: a redirect leads from https to http",
        "datamanager/sources/http/client.py",
        'if target.scheme == "https" and onward.scheme != "https":',
        "if False:",
        ("tests/integration/test_http_routes.py::test_https_never_becomes_http",),
    ),
    Fault(
        "http: TLS certificates are not verified",
        "datamanager/sources/network/tls.py",
        "        if not self.verify:\n",
        "        if True:\n",
        ("tests/integration/test_http_routes.py::test_tls_that_is_not_trusted",),
    ),
    Fault(
        "http: a client's headers go to another origin",
        "datamanager/sources/http/client.py",
        "own = self.terms.headers if trusted else NO_HEADERS",
        "own = self.terms.headers",
        ("tests/integration/test_http_options.py::test_logins_go_to_their_origin_only[headers]",),
    ),
    Fault(
        "http: an answer that can't change is retried",
        "datamanager/sources/http/answer.py",
        "retryable = status in _RETRYABLE or status >= 500",
        "retryable = True",
        ("tests/integration/test_http_source.py::test_a_status_that_is_no_download[404-False]",),
    ),
    Fault(
        "http: more bytes than announced are accepted",
        "datamanager/sources/http/answer.py",
        "if surplus or (self._announced is not None and received != self._announced):",
        "if False:",
        ("tests/integration/test_http_source.py::test_a_broken_answer_never_ends_quietly[longer than announced]",),
    ),
    Fault(
        "http: the maximum size is not applied while reading",
        "datamanager/sources/network/blocks.py",
        "        if received > most:\n",
        "        if False:\n",
        ("tests/integration/test_http_source.py::test_too_large_is_refused_before_and_while_reading",),
    ),
    Fault(
        "resume: If-Range is not sent",
        "datamanager/sources/http/answer.py",
        '        return {"Range": f"bytes={self.start}-{last}", **condition}\n',
        '        return {"Range": f"bytes={self.start}-{last}"}\n',
        ("tests/integration/test_download_resume.py::test_it_goes_on_where_it_was",),
    ),
    Fault(
        "resume: bytes of another version are appended",
        "datamanager/sources/http/answer.py",
        "if wanted.version is not None and self.version != wanted.version:",
        "if False:",
        ("tests/contract/test_sources.py::test_parts_and_versions[http]",),
    ),
    Fault(
        "download: a wrong checksum is published",
        "datamanager/engine/fetching/replica_fetch.py",
        "if found != expected:",
        "if False:",
        ("tests/contract/test_sources.py::test_a_wrong_checksum_publishes_nothing[http-sha256]",),
    ),
    Fault(
        "download: a bomb is decompressed",
        "datamanager/sources/decompression.py",
        "if given > RATIO_FROM and given > RATIO_MAX * self._taken:",
        "if False:",
        ("tests/integration/test_unpacking.py::test_a_bomb_is_let_go",),
    ),
    Fault(
        "secrets: the query of a URL is shown",
        "datamanager/sources/terms/urls.py",
        '    return f"{shown}?…" if match["query"] else f"{shown}?"\n',
        "    return f\"{shown}?{match['query']}\"\n",
        ("tests/unit/test_source_urls.py::test_public_url",),
    ),
    Fault(
        "secrets: options are stored as they were given",
        "datamanager/sources/terms/request_secrets.py",
        "shown = _without_queries(value) if name in _public() else _hidden(value)",
        "shown = value",
        ("tests/unit/test_sealing.py::test_no_secret_is_left_in_a_request_and_all_come_back",),
    ),
    Fault(
        "secrets: a key file that others can read is used",
        "datamanager/sealing.py",
        "if is_open(found.st_mode, found.st_uid, os.geteuid()):",
        "if False:",
        ("tests/unit/test_sealing.py::test_a_bad_key_file_is_refused",),
    ),
    Fault(
        "curl: a quote in a value is not escaped",
        "datamanager/sources/http/curl_config.py",
        """.replace('"', '\\\\"')""",
        "",
        ("tests/unit/test_curl.py::test_each_value_is_one_quoted_line",),
    ),
    Fault(
        "http: what a source asks to wait is not heard",
        "datamanager/sources/http/answer.py",
        "    if status not in _WAITED_FOR:\n        return None\n",
        "    return None\n",
        ("tests/unit/test_retry_after.py::test_retry_after",),
    ),
    Fault(
        "ftp: the limit that a server showed is forgotten",
        "datamanager/sources/network/host_limits.py",
        "if limit is not None and self._open[server] >= limit:",
        "if False:",
        ("tests/integration/test_source_ftp.py::test_our_own_connections_keep_to_what_a_server_allows",),
    ),
)
