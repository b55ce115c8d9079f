"""The `options` of getexternal: one model per protocol, unknown keys refused by name, secrets marked as such.

A `SecretStr`, or a dict of them, is a secret: it is sealed before the request is stored (`request_secrets`), and never
shown. A new option that may hold a secret must have such a type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from datamanager.domain.fields import NAME_SHOWN, Real, Size, Whole, empty_is, unknown_name
from datamanager.domain.requests import NAMED_MAX
from datamanager.errors import InvalidRequest, NotSupported

O = TypeVar("O", bound="CommonOptions")  # noqa: E741

TEXT_MAX = 65_536
MIRRORS_MAX = 8
RETRIES_MAX = 10
TIMEOUT_MAX = 3600.0
HEADERS_MAX = 64

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_MEDIA = re.compile(r"[!#$&^_.+0-9A-Za-z-]+/(\*|[!#$&^_.+0-9A-Za-z-]+)")
_ENCODINGS = {"gzip": frozenset({"gzip", "x-gzip"}), "zstd": frozenset({"zstd"})}
_DIGEST = re.compile(r"sha256:[0-9a-fA-F]{64}|md5:[0-9a-fA-F]{32}")
# RFC 9110, 7.6.1 (hop by hop), and what only the source itself may say: framing, host, ranges, conditions, encodings.
_OWN_HEADERS = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("proxy-authenticate", "proxy-authorization", "host", "content-length", "content-type", "content-encoding"),
        *("range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"),
        *("accept-encoding", "expect", "max-forwards", "via", "forwarded", "http2-settings"),
    }
)


def _one_line(value: str | SecretStr | None) -> str | SecretStr | None:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if text is not None and not text.isprintable():
        raise ValueError("must not contain control characters")
    return value


Text = Annotated[str | None, empty_is(None)]
Secret = Annotated[SecretStr | None, empty_is(None)]
Line = Annotated[Text, AfterValidator(_one_line)]
SecretLine = Annotated[Secret, AfterValidator(_one_line)]


class CommonOptions(BaseModel):
    """What every protocol takes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, str_max_length=TEXT_MAX, arbitrary_types_allowed=False
    )

    credential: Text = None
    """Name of a stored credential, whose fields are taken for those that are absent."""
    checksum: Text = None
    """What must arrive: `sha256:<hex>`, `md5:<hex>`, or the http(s) URL of a file like SHA256SUMS."""
    size: Size = None
    """Bytes that must arrive; the same as the request's `size`."""
    max_size: Size = None
    """Bytes that may arrive at most; never more than the operator allows."""
    timeout: Annotated[Real, Field(gt=0, le=TIMEOUT_MAX)] | None = None
    """Seconds in which something must arrive."""
    retries: Annotated[Whole, Field(ge=0, le=RETRIES_MAX)] | None = None
    """How often the transfer's step is tried again after a failure that may pass."""
    mirrors: Annotated[tuple[str, ...], Field(max_length=MIRRORS_MAX)] = ()
    """Further URLs of the same bytes, tried in turn."""
    decompress: Annotated[Literal["gzip", "zstd"] | None, empty_is(None)] = None
    """Decompress it on the way; `size` and `checksum` are of the file as the source has it."""
    extract: Annotated[Literal["tar", "zip"] | None, empty_is(None)] = None
    """Make each file in it an object, instead of itself; `size` and `checksum` are of the archive."""
    if_newer_than: Annotated[UUID | None, empty_is(None)] = None
    """An object that was fetched earlier: when the source is still the same, there is no second copy."""
    expect_type: Text = None
    """Media type that the source must name: `application/x-netcdf`, `image/*`."""

    @field_validator("if_newer_than")
    @classmethod
    def _one_object_is_compared(cls, value: UUID | None, info: ValidationInfo) -> UUID | None:
        if value is not None and info.data.get("extract"):
            raise ValueError("cannot be combined with extract, which creates many objects")
        return value

    @field_validator("checksum")
    @classmethod
    def _checksum_is_known(cls, value: str | None) -> str | None:
        if value is None or value.lower().startswith(("http://", "https://")):
            return value
        if not _DIGEST.fullmatch(value):
            raise ValueError("must be sha256:<64 hex digits>, md5:<32 hex digits> or the URL of a SHA256SUMS file")
        return value.lower()

    @field_validator("expect_type")
    @classmethod
    def _type_is_a_media_type(cls, value: str | None) -> str | None:
        if value is not None and not _MEDIA.fullmatch(value):
            raise ValueError("must be a media type such as application/x-netcdf or image/*")
        return None if value is None else value.lower()


class TlsOptions(CommonOptions):
    """A protocol that may run over TLS."""

    verify_tls: bool = True
    """False only where the operator permits it (DM_DOWNLOAD_INSECURE)."""
    ca: Text = None
    """PEM text of certificate authorities to trust besides the public ones."""


class EncodedOptions(TlsOptions):
    """A protocol whose servers may name an encoding of what they send."""

    raw: bool = False
    """Take the bytes as they are sent, whatever Content-Encoding says."""

    @property
    def encodings(self) -> frozenset[str] | None:
        """The encodings that an answer may name although none is requested; None: any, as its bytes are taken as they
        are. Many servers name one of a stored `.tar.gz`; what was not stored so would be another file.
        """
        if self.raw or self.checksum is not None:
            return None
        return _ENCODINGS.get(self.decompress or "", frozenset())


class HttpOptions(EncodedOptions):
    """http and https."""

    username: Line = None
    password: SecretLine = None
    token: SecretLine = None
    """Sent as `Authorization: Bearer …`."""
    headers: Annotated[dict[str, SecretStr], Field(max_length=HEADERS_MAX)] = Field(default_factory=dict)
    """Further headers; their values count as secrets."""
    query: Annotated[dict[str, SecretStr], Field(max_length=HEADERS_MAX)] = Field(default_factory=dict)
    """Added to the URL's query; the values count as secrets."""
    client_cert: Secret = None
    """PEM text: a certificate, its chain, and its key, unencrypted."""
    proxy: Text = None
    """`http://host:port`; the egress guard checks it as well."""
    proxy_username: Line = None
    proxy_password: SecretLine = None
    fetch: Annotated[Literal["mover", "remote"] | None, empty_is(None)] = None
    """Who reads the source: the mover, or the machine itself by its curl."""

    @field_validator("username")
    @classmethod
    def _no_colon(cls, value: str | None) -> str | None:
        if value is not None and ":" in value:
            raise ValueError("must not contain a colon (RFC 7617)")
        return value

    @field_validator("token")
    @classmethod
    def _token_may_be_sent(cls, value: SecretStr | None) -> SecretStr | None:
        text = "" if value is None else value.get_secret_value()
        if not text.isascii() or text != text.strip():
            raise ValueError("must be ASCII without blanks around it")
        return value

    @field_validator("headers")
    @classmethod
    def _headers_may_be_sent(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            text = secret.get_secret_value()
            if not _TOKEN.fullmatch(name):
                raise ValueError("a header's name must be a token (RFC 9110)")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"{name} is set by the Data Manager itself and can't be given")
            if not (text.isascii() and text.isprintable()) or text != text.strip() or len(text) > 8192:
                raise ValueError(f"the value of {name} must be one line of printable ASCII of up to 8192 characters")
        if len({name.lower() for name in value}) != len(value):
            raise ValueError("a header is given twice")
        return value


class WebdavOptions(HttpOptions):
    """webdav and webdavs: http with a login by basic or digest."""


class S3Options(EncodedOptions):
    """s3: AWS, MinIO, Ceph; public buckets unsigned."""

    region: Text = None
    endpoint: Text = None
    """URL of the server; default AWS. The egress guard checks it."""
    access_key: Text = None
    secret_key: Secret = None
    session_token: Secret = None
    unsigned: bool = False


class SftpOptions(CommonOptions):
    """sftp on a host that is no configured machine."""

    username: Text = None
    password: Secret = None
    private_key: Secret = None
    """PEM or OpenSSH text of an unencrypted key."""
    host_key: Text = None
    """The server's public key as in known_hosts (`ssh-ed25519 AAAA…`), or its fingerprint `SHA256:…`."""


class FtpOptions(TlsOptions):
    """ftp and ftps. Without a login: anonymous."""

    username: Line = None
    password: SecretLine = None
    tls: Annotated[Literal["explicit", "implicit"] | None, empty_is(None)] = None
    """`explicit`: the connection begins in clear text and AUTH TLS is requested; `implicit`: TLS from the first byte.
    Default: none for ftp; for ftps explicit on port 21 and implicit on any other."""


def option_error(name: str, why: str) -> InvalidRequest:
    """Return the error for an option that can't be accepted: "options.<name>: <why>"."""
    return InvalidRequest(f"options.{name}: {why}", {f"options.{name}": why})


def refuse_expect_type(options: CommonOptions, scheme: str) -> None:
    """Refuse `expect_type` for a protocol without media types. Raises: NotSupported."""
    if options.expect_type is not None:
        raise NotSupported(f"option expect_type is not supported by {scheme}, which has no media types")


def plain_text(secret: SecretStr | None) -> str | None:
    """Return the text of a secret that is set."""
    return None if secret is None else secret.get_secret_value()


def parse_options(model: type[O], given: Mapping[str, object] | CommonOptions | None, protocol: str) -> O:
    """Return typed options.

    Raises: InvalidRequest, which names `options.<key>` and what would be right, unknown ones too; NotSupported for an
    option of other protocols. Values are never quoted.
    """
    if isinstance(given, model):
        return given
    fields = dict(given or {})
    refuse_unknown(fields, model)
    for name in map(str, fields):
        if name not in model.model_fields:
            known = f"known: {', '.join(sorted(model.model_fields))}"
            raise NotSupported(f"option {name} is not supported by {protocol}; {known}")
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        wrong: dict[str, str] = {}
        for fault in exc.errors(include_url=False, include_input=False, include_context=False):
            # only the option's name: what is below it (a header's name) may be secret as well
            wrong.setdefault(f"options.{fault['loc'][0]}", fault["msg"].removeprefix("Value error, "))
        raise InvalidRequest("; ".join(f"{name}: {what}" for name, what in wrong.items()), wrong) from None


def refuse_unknown(options: Mapping[str, object], model: type[CommonOptions] | None = None) -> None:
    """Refuse options that no protocol has: probably misspelt ones of `model` (None: of any). Raises: InvalidRequest."""
    known = {name for other in every_model() for name in other.model_fields}
    near = known if model is None else model.model_fields
    unknown = [str(name) for name in options if name not in known]
    if unknown:
        raise InvalidRequest.of(
            {f"options.{name[:NAME_SHOWN]}": unknown_name(name, near) for name in unknown[:NAMED_MAX]}
        )


def secret_fields(options: CommonOptions) -> dict[str, Any]:
    """Return the secrets that are set, in plain text and fit for JSON: option → text, or name → text."""
    found: dict[str, Any] = {}
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, SecretStr):
            found[name] = value.get_secret_value()
        elif isinstance(value, dict) and any(isinstance(one, SecretStr) for one in value.values()):
            found[name] = {key: one.get_secret_value() for key, one in value.items()}
    return found


def every_model(of: type[CommonOptions] = CommonOptions) -> Iterator[type[CommonOptions]]:
    """Yield the models of all protocols, and those that they share."""
    yield of
    for child in of.__subclasses__():
        yield from every_model(child)
