"""A server that takes connections by TLS alone, with certificates made on the spot."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from psycopg.conninfo import make_conninfo

from callipper_db.server import EmbeddedServer
from deployments import call, succeed
from sessions import user_session

PASSWORD = "of-the-superuser"
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class EncryptedServer:
    """Where it is, and the certificate of the authority that has signed its own."""

    port: int
    authority: Path
    stranger: Path  # another authority, which has signed nothing
    data: Path

    def parts(self, authority: Path | None = None, sslmode: str = "verify-full") -> dict[str, str]:
        """The parameters of a connection, by their names in libpq."""
        names = {"host": "localhost", "port": str(self.port), "user": "callipper", "dbname": "callipper"}
        return names | {"sslmode": sslmode, "sslrootcert": str(authority or self.authority)}

    def dsn(self, authority: Path | None = None, sslmode: str = "verify-full") -> str:
        return make_conninfo("", **self.parts(authority, sslmode))


def make_authority(folder: Path, name: str) -> Path:
    """A certificate that may sign others, with its key beside it."""
    path = folder / f"{name}.crt"
    openssl("req", "-x509", *KEY, "-keyout", folder / f"{name}.key", "-out", path, "-subj", f"/CN={name}", "-days", "2")
    return path


def openssl(*arguments: str | Path) -> None:
    found = shutil.which("openssl")
    assert found, "openssl is not installed"
    succeed(Path(found), *arguments)


def make_certificate(folder: Path, authority: Path) -> tuple[Path, Path]:
    """The certificate of localhost and its key, signed by the authority."""
    request, certificate, key = (folder / f"server.{ending}" for ending in ("csr", "crt", "key"))
    (folder / "names").write_text("subjectAltName = DNS:localhost\n")
    openssl("req", *KEY, "-keyout", key, "-out", request, "-subj", "/CN=localhost")
    signed_by = ("-CA", authority, "-CAkey", authority.with_suffix(".key"), "-CAcreateserial")
    openssl("x509", "-req", "-in", request, *signed_by, "-out", certificate, "-days", "2", "-extfile", folder / "names")
    return certificate, key


@contextmanager
def encrypted(
    home: Path, pg_bin: Path, auth: str = "trust", settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[EncryptedServer]:
    """The cluster of an embedded server, started so that it listens on a port and refuses what is not encrypted.

    auth: the way to authenticate; with scram-sha-256 the superuser's password is PASSWORD.
    """
    server = EmbeddedServer(home / "home", pg_bin=pg_bin, durable=False, root_area=home / "area")
    server.start()
    with user_session(server.administrator_dsn()) as connection:
        connection.execute(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'".encode())
    server.stop()
    authority, stranger = make_authority(home, "authority"), make_authority(home, "stranger")
    certificate, key = make_certificate(home, authority)
    data = server.data_dir
    (home / "pg_hba.conf").write_text(f"hostssl all,replication all localhost {auth}\n")
    for path in (certificate, key, home / "pg_hba.conf"):
        shutil.move(path, data / path.name)
        os.chown(data / path.name, data.stat().st_uid, data.stat().st_gid)
        (data / path.name).chmod(0o600)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    ours = {"listen_addresses": "localhost", "port": str(port), "unix_socket_directories": "", "ssl": "on"}
    ours |= {"ssl_cert_file": certificate.name, "ssl_key_file": key.name, **settings}
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in ours.items())
    user = data.stat().st_uid if os.geteuid() == 0 else None
    control = (pg_bin / "pg_ctl", "-D", data, "-w", "-l", data / "tls.log")
    succeed(*control, "start", user=user)
    try:
        yield EncryptedServer(port, authority, stranger, data)
    finally:
        call(*control, "-m", "immediate", "stop", user=user)
