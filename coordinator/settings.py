"""Settings of the coordinator: environment variables with the prefix FEDCOORD_, none of them needed."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from platformdirs import user_data_path
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from fedcybgd.coordinator.domain.jobs.kinds import Lane


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="FEDCOORD_", extra="ignore")

    home: Path = Field(default_factory=lambda: user_data_path("fedcoord"), description="directory of the database and the blobs")
    shared: Path | None = Field(
        None,
        description="directory of blobs, uploads and secrets, where several coordinators on one PostgreSQL database have them in common; "
        "default: the home",
    )
    storage: str | None = Field(
        None,
        description="s3://bucket/prefix, where blobs and uploads are kept in S3 or what is compatible with it; keys, region and endpoint are those of the "
        "environment (AWS_ACCESS_KEY_ID …); default: a directory",
    )
    storage_links: str | None = Field(
        None,
        description="https://…, the endpoint of the object storage as agents reach it, where that is another one than the coordinator's; "
        "off: agents get all bytes through the coordinator",
    )
    storage_cache_gb: float = Field(
        20, gt=0, description="copies of blobs of the object storage on this machine's disk at the most, beside those in use, in 1e9 bytes"
    )
    database_url: str | None = Field(None, description="postgresql://…; default: an SQLite file in the home directory")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8440, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    tls_certificate: Path | None = Field(None, description="PEM file of the certificate, with its chain; then the coordinator speaks HTTPS")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key")
    plain_http: Literal["refused", "allowed"] = Field(
        "refused", description="allowed: listen beyond this machine without a certificate; whoever is on the way reads keys and deltas"
    )
    proxies: str | None = Field(
        None,
        description="addresses or networks, with commas between them, of reverse proxies that end HTTPS in front of this coordinator: their "
        "X-Forwarded-For and X-Forwarded-Proto are believed; default: 127.0.0.1 and ::1",
    )
    accel: str | None = Field(
        None,
        pattern=r"^/([A-Za-z0-9._-]+/)+$",
        description="path at which a reverse proxy in front serves the directory of blobs to nobody but itself, as in /blobs/: it sends them "
        "(X-Accel-Redirect) in place of the coordinator; default: none",
    )
    hosts: str | None = Field(
        None, description="names, with commas between them, by which this coordinator may be called (the heading Host); default: any"
    )
    lanes: Literal["all", "none", "quick", "slow"] = Field(
        "all",
        description="lanes of jobs that the coordinator does itself; for the others there must be a `fedcoord engine` somewhere",
    )
    engine: str | None = Field(
        None, description="ray://host:10001, the Ray cluster that does the jobs of these lanes; default: processes of this machine"
    )
    engines: int = Field(1, ge=1, le=16, description="engines of each lane: so many of its jobs are done at the same time")
    engine_threads: int = Field(
        1,
        ge=1,
        description="threads in which each engine process computes; deltas are applied and shards encoded by as many as there are cores, 8 at the most",
    )
    engine_device: str = Field(
        "cpu", pattern=r"^(cpu|cuda(:\d{1,2})?)$",
        description="where scores, influence and fidelity are measured: cpu, cuda or cuda:1; weights are made on the processor, which makes the same bits everywhere",
    )  # fmt: skip
    migrate: Literal["start", "never"] = Field(
        "start", description="start: bring the database to the newest schema at a start; never: only `fedcoord db upgrade` does"
    )
    threads: int = Field(
        40, ge=4, le=1000, description="requests that speak to the database at the same time; it is asked for ten connections more"
    )
    silent_after_s: float = Field(
        90,
        gt=0,
        description="seconds without a sign of life after which an agent counts as silent. Signs are written down every 30: with fewer than 60 idle agents come and go",
    )
    sweep_every_s: float = Field(1.0, gt=0, description="seconds between two looks for lapsed leases")
    max_held_out_bytes: int = Field(1 << 30, gt=0, description="the largest held-out file that may be uploaded")
    max_model_bytes: int = Field(1 << 38, gt=0, description="the largest model that may be uploaded: the bytes of all its files")
    keep_model_uploads_s: float = Field(
        7 * 86400, ge=60, description="seconds after which an upload of a model is given up that nobody has sent anything of"
    )
    keep_blobs_s: float = Field(
        3600,
        ge=60,
        description="seconds that a blob is kept once nothing needs it: superseded shards, deltas that no history needs, old exports",
    )
    keep_versions: Literal["all"] | Annotated[int, Field(ge=0)] = Field(
        "all",
        description="rounds that a run can be taken back by: as many deltas are kept; all: every delta of every run; 0: none once applied",
    )
    keep_runs_s: Literal["all"] | Annotated[float, Field(ge=86400)] = Field(
        "all", description="seconds after its end at which a run is deleted, with its history and its model; all: none is, by itself"
    )
    keep_payloads_s: float = Field(
        7 * 86400,
        ge=60,
        description="seconds that the payload of a finished job and the manifest of a judged visit are kept; their facts stay",
    )
    operator_keys_hold_s: float | None = Field(
        None, gt=0, description="seconds that a new key of an operator is good for, where nothing else is asked for; default: for good"
    )
    agent_keys_hold_s: float | None = Field(
        None,
        ge=60,
        description="seconds that a new key of an agent is good for; agents change theirs in time by themselves; default: for good",
    )
    webhook_url: str | None = Field(None, description="address that every event is POSTed to, signed; default: none")
    webhook_level: Literal["info", "warning", "error"] = Field("warning", description="the least level of the events that are POSTed")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_format: Literal["text", "json"] = Field(
        "text",
        description="of lines on standard error: text for people; json: an object a line, with run, round, block and agent as fields",
    )

    @property
    def names(self) -> frozenset[str]:
        """The hosts, one by one."""
        return frozenset(name.strip().lower() for name in (self.hosts or "").split(",") if name.strip())

    @property
    def own_lanes(self) -> list[Lane]:
        return [lane for lane in Lane if self.lanes in ("all", lane)]

    @property
    def at_once(self) -> int:
        """How many threads want a connection to the database at the same time: those of requests, and of each lane's engines but the first."""
        return self.threads + len(self.own_lanes) * (self.engines - 1)

    @property
    def behind(self) -> str | None:
        """The address by which it is called behind its proxies; None where it has none, or no name there."""
        return f"https://{(self.hosts or '').split(',')[0].strip().lower()}" if self.through_proxies and self.names else None

    @property
    def through_proxies(self) -> bool:
        """Whether other machines reach it through its proxies alone."""
        return self.proxies is not None and self.tls_certificate is None and self.plain_http == "refused"

    @property
    def url(self) -> str:
        return self.database_url or f"sqlite:///{quote(str(self.home / 'coordinator.db'))}"

    @property
    def common(self) -> Path:
        """What all coordinators on the database have of it that is no row."""
        return self.shared or self.home

    @property
    def first_key(self) -> Path:
        """File of the key of the first operator, for whoever may read the directory."""
        return self.common / "operator.key"

    @property
    def signing_secret(self) -> Path:
        """File of the secret under which the signing key is sealed."""
        return self.common / "signing.secret"

    @property
    def webhook_secret(self) -> Path:
        """File of the secret that the webhook signs with."""
        return self.common / "webhook.secret"

    @property
    def blobs(self) -> Path:
        return self.common / "blobs"

    @property
    def uploads(self) -> Path:
        return self.common / "uploads"
