"""A DICOMweb server behind TLS: whose certificates are trusted, what is said when they are not, and a proxy on the way."""

from __future__ import annotations

import json
import pathlib
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request

import numpy
import pytest

from pacs import Archive, ConnectProxy, fewlabel, serving, write_series

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(folder: pathlib.Path) -> pathlib.Path:
    """The certificate of an authority of one's own, beside its key."""
    certificate = folder / "authority.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", folder / "authority.key"]
    openssl("req", "-x509", *key, "-subj", f"/CN=Authority of {folder.name}", "-days", "30", "-out", certificate)
    return certificate


def certificate(folder: pathlib.Path, host: str) -> ssl.SSLContext:
    """What a server shows that the authority of the folder vouches for, under this name."""
    key, request, shown, names = (folder / f"{host}.{end}" for end in ("key", "csr", "pem", "ext"))
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-subj", f"/CN={host}", "-out", request)
    names.write_text(f"subjectAltName={'IP' if host[0].isdigit() else 'DNS'}:{host}\nbasicConstraints=CA:FALSE\n")
    signed_by = ["-CA", folder / "authority.pem", "-CAkey", folder / "authority.key", "-CAcreateserial"]
    openssl("x509", "-req", "-in", request, *signed_by, "-days", "30", "-extfile", names, "-out", shown)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown, key)
    return context


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive") / "series"
    write_series(folder, numpy.zeros((6, 20, 24), int), (4.0, 3.0, 3.0))
    return Archive(folder)


def total(url: str) -> int:
    with urllib.request.urlopen(f"{url}/datastore/", timeout=60) as answer:
        return json.load(answer)["total"]


def image(url: str, archive: Archive) -> int:
    uid = archive.files[0][0].SeriesInstanceUID
    with urllib.request.urlopen(f"{url}/datastore/image?image={uid}", timeout=120) as answer:
        return len(answer.read())


@pytest.mark.parametrize("proxied", (False, True), ids=("direct", "proxied"))
def test_an_authority_of_ones_own(archive: Archive, tmp_path: pathlib.Path, proxied: bool) -> None:
    trusted = authority(tmp_path)
    proxy = ConnectProxy()
    variables = {"SSL_CERT_FILE": str(trusted), "HTTPS_PROXY": proxy.url, "NO_PROXY": "" if proxied else "127.0.0.0/8"}
    with (
        serving(archive, certificate(tmp_path, "127.0.0.1")) as pacs,
        fewlabel(tmp_path, pacs, "--labels", "liver", **variables) as (url, log),
    ):
        assert total(url) == 1
        assert image(url, archive) > 0
    assert bool(proxy.asked) == proxied
    # The proxy gets its own login and no word of the requests.
    assert all("Proxy-Authorization: Basic" in head or "proxy-authorization: Basic" in head for head in proxy.asked)
    assert "secret" not in log.read_text()


@pytest.mark.parametrize(
    ("host", "is_trusted", "reason"),
    (("127.0.0.1", False, "UnknownIssuer"), ("pacs.example.org", True, "not valid for")),
    ids=("unknown authority", "another host"),
)
def test_a_wrong_certificate(archive: Archive, tmp_path: pathlib.Path, host: str, is_trusted: bool, reason: str) -> None:
    trusted = authority(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    variables = {"SSL_CERT_FILE": str(trusted if is_trusted else authority(other))}
    with (
        serving(archive, certificate(tmp_path, host)) as pacs,
        fewlabel(tmp_path, pacs, "--labels", "liver", **variables) as (url, log),
    ):
        assert total(url) == 0
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{url}/datastore/rescan", b"", method="POST"), timeout=60)
        assert refused.value.code == 503
        told = refused.value.read().decode()
    for text in (told, log.read_text()):
        assert reason in text and "SSL_CERT_FILE" in text
