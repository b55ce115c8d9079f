"""TLS of a download: the authorities that it trusts and its client certificate, from PEM text, never on a disk."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssl_ import create_urllib3_context

from datamanager.sources.terms.source_options import TlsOptions, option_error, plain_text


@dataclass(frozen=True, slots=True)
class Trust:
    """What a TLS context is made of. The public authorities are always trusted, unless nothing is verified at all."""

    ca: str | None = None
    """PEM text of further authorities."""
    client_cert: str | None = field(default=None, repr=False)
    """PEM text of a certificate, its chain and its unencrypted key."""
    verify: bool = True

    @classmethod
    def of(cls, options: TlsOptions) -> Trust:
        """Return what the options ask for. Raises: InvalidRequest for PEM texts that can't be read."""
        trust = cls(options.ca, plain_text(getattr(options, "client_cert", None)), options.verify_tls)
        if trust.ca is not None:
            with _readable("ca", "must be PEM certificates"):
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=trust.ca)
        if trust.client_cert is not None:
            with _readable("client_cert", "must be a PEM certificate with its unencrypted key"):
                _load_client(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), trust.client_cert)
        return trust

    def without_client(self) -> Trust:
        """Return the same without the client certificate, for another origin than it is meant for."""
        return self if self.client_cert is None else replace(self, client_cert=None)

    def context(self, ca_file: Path | None = None) -> ssl.SSLContext:
        """Return a new context for one connection. Raises: OSError when a file of authorities can't be read."""
        context = create_urllib3_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.load_verify_locations(cafile=DEFAULT_CA_BUNDLE_PATH)
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
        if self.ca is not None:
            context.load_verify_locations(cadata=self.ca)
        if self.client_cert is not None:
            _load_client(context, self.client_cert)
        return context


def _load_client(context: ssl.SSLContext, pem: str) -> None:
    """Load a certificate and key from memory: `ssl` reads them from a file only, so they get one without a disk."""
    with os.fdopen(os.memfd_create("client-certificate", os.MFD_CLOEXEC), "wb") as memory:
        memory.write(pem.encode())
        memory.flush()
        # an encrypted key would make OpenSSL ask on the terminal
        context.load_cert_chain(f"/proc/self/fd/{memory.fileno()}", password=_no_password)


def _no_password() -> str:
    raise ValueError("the key is encrypted")


@contextmanager
def _readable(option: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError):  # what is not ASCII is a TypeError; texts may quote what was given
        raise option_error(option, wanted) from None
