"""The address of an endpoint, as one URL: `s3://KEY:SECRET@HOST:PORT/SERVICE-BUCKET?region=…`."""

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from outbox.errors import SettingsError
from outbox.rows import Json

_WORDS = frozenset({"region", "tls", "addressing", "account", "public", "bypass_governance"})
_TRUTH = {"true": True, "false": False}
_ADDRESSING = ("path", "virtual", "auto")


@dataclass(frozen=True, repr=False)
class Endpoint:
    """Where a backend is, and as whom. `key` and `secret` are None where boto3 finds them: a profile, a role."""

    url: str | None  # None: AWS
    key: str | None
    secret: str | None
    service_bucket: str
    region: str
    addressing: str
    account: str | None  # what ExpectedBucketOwner says; AWS only has it, and always
    public: str
    bypass_governance: bool

    @property
    def partition(self) -> str:
        """The second word of an ARN."""
        if self.region.startswith("cn-"):
            return "aws-cn"
        return "aws-us-gov" if self.region.startswith("us-gov-") else "aws"

    def credentials(self, bucket: str) -> Json:
        """What a customer is told: where the bucket is. The platform grants access to it (docs/backends.md)."""
        return {"endpoint": self.public, "region": self.region, "addressing": self.addressing, "bucket": bucket}


def parse(dsn: str) -> Endpoint:
    """Read a dsn. Raises SettingsError, which shows nothing of the URL but the names of its words."""
    try:
        parts = urlsplit(dsn)
        host, port, bucket = parts.hostname, parts.port, parts.path.strip("/")
        words = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise SettingsError(
            "the dsn is not an s3:// URL; write '/', '+', '@' and '%' of its secret as %2F, %2B, %40 and %25 "
            "(it is not shown: it may hold a secret)"
        ) from None
    if parts.scheme != "s3":
        raise SettingsError("the dsn must begin with s3:// (it is not shown: it may hold a secret)")
    if unknown := sorted(words.keys() - _WORDS):
        known = ", ".join(sorted(_WORDS))
        raise SettingsError(f"the dsn has a word that S3 does not know, number {_place(words, unknown[0])}: {known}")
    if not bucket or "/" in bucket:
        raise SettingsError("the dsn must name the service's own bucket, as s3://…/BUCKET?…")
    if (parts.username is None) != (parts.password is None):
        raise SettingsError("the dsn must have both a key and its secret, as s3://KEY:SECRET@…, or neither")
    if host is None and not (words.get("region") and words.get("account")):
        raise SettingsError("a dsn without a host is AWS, and needs `region` and `account`: ?region=…&account=…")
    tls, bypass = (_truth(words, name, default) for name, default in (("tls", True), ("bypass_governance", False)))
    addressing = words.get("addressing", "path" if host else "auto")
    if addressing not in _ADDRESSING:
        raise SettingsError(f"`addressing` in the dsn must be one of {', '.join(_ADDRESSING)}")
    region = words.get("region") or "us-east-1"
    url = host and f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"
    return Endpoint(
        url=url,
        key=None if parts.username is None else unquote(parts.username),
        secret=None if parts.password is None else unquote(parts.password),
        service_bucket=bucket,
        region=region,
        addressing=addressing,
        account=words.get("account") or None,
        public=words.get("public") or url or f"https://s3.{region}.amazonaws.com",
        bypass_governance=bypass,
    )


def _place(words: dict[str, str], name: str) -> int:
    """Which word of the query it is: its name may be a piece of a secret that was not quoted."""
    return list(words).index(name) + 1


def _truth(words: dict[str, str], name: str, default: bool) -> bool:
    if (value := words.get(name)) is None:
        return default
    if value not in _TRUTH:
        raise SettingsError(f"`{name}` in the dsn must be true or false")
    return _TRUTH[value]
