"""Who may issue for whom: the fleet's root, a region's authority, and nobody else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from wavemesh.identity import authorities
from wavemesh.identity.authorities import Authorities
from wavemesh.identity.ca import CaFilesError, FleetCa, RegionCa, write_node
from wavemesh.identity.certificates import BadCertificateError, Scope, authority_scope, verify_certificate
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.nodes import NodeId

if TYPE_CHECKING:
    from pathlib import Path

FLEET = "test.example"
NOW = datetime(2026, 9, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=90)
HOUR = timedelta(hours=1)
HUB = "region/midwest/store/store-20"
ELSEWHERE = (
    "region/midwest-2",
    "region/midwest-2/store/store-20",
    "region/west/store/store-20/device/pos-01",
    "control/cloud-1",
    "operator/alice",
)


@pytest.fixture(scope="module")
def ca() -> FleetCa:
    return FleetCa.create(FLEET, NOW)


@pytest.fixture(scope="module")
def region(ca: FleetCa) -> RegionCa:
    return RegionCa.create(ca, "midwest", not_before=NOW, not_after=NOW + timedelta(days=365))


def public_key() -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


@pytest.mark.parametrize("path", ["region/midwest", HUB, HUB + "/device/pos-01"])
def test_a_region_speaks_for_its_own(ca: FleetCa, region: RegionCa, path: str) -> None:
    """D11: a region's authority is enough to prove its super hub, its stores and their devices."""
    leaf = region.issue(NodeId(FLEET, path), public_key(), not_before=NOW, not_after=LATER)
    trust = Authorities([ca.certificate])
    assert trust.verify(leaf, NOW, region.chain).path == path
    with pytest.raises(BadCertificateError, match="not valid"):
        trust.verify(leaf, NOW)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_region_does_not_issue_for_others(region: RegionCa, path: str) -> None:
    with pytest.raises(RuntimeError, match="does not issue for"):
        region.issue(NodeId(FLEET, path), public_key(), not_before=NOW, not_after=LATER)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_stolen_region_key_speaks_for_no_other(ca: FleetCa, region: RegionCa, path: str) -> None:
    """The thief's program asks nothing; whoever verifies refuses what he signed."""
    thief = FleetCa(FLEET, region.certificate, region._key)
    leaf = thief.issue(NodeId(FLEET, path), public_key(), not_before=NOW, not_after=LATER)
    with pytest.raises(BadCertificateError):
        Authorities([ca.certificate]).verify(leaf, NOW, region.chain)


def test_name_constraints_alone_would_not_do(ca: FleetCa, region: RegionCa, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaf without a DNS name passes TLS; the URI SAN of the authority is what refuses it."""
    monkeypatch.setattr(NodeId, "dns_name", "midwest.storehub." + FLEET)
    thief = FleetCa(FLEET, region.certificate, region._key)
    leaf = thief.issue(NodeId(FLEET, "operator/alice"), public_key(), not_before=NOW, not_after=LATER)
    with pytest.raises(BadCertificateError, match=r"speaks for spiffe://test\.example/region/midwest"):
        Authorities([ca.certificate]).verify(leaf, NOW, region.chain)


def test_a_region_makes_no_authorities(ca: FleetCa, region: RegionCa) -> None:
    thief = FleetCa(FLEET, region.certificate, region._key)
    below = RegionCa.create(thief, "midwest", not_before=NOW, not_after=LATER)
    leaf = below.issue(NodeId(FLEET, HUB), public_key(), not_before=NOW, not_after=LATER)
    with pytest.raises(BadCertificateError, match="not valid"):
        Authorities([ca.certificate]).verify(leaf, NOW, [below.certificate, region.certificate])


def test_nothing_outlives_its_authority(ca: FleetCa, region: RegionCa) -> None:
    until = region.certificate.not_valid_after_utc
    leaf = region.issue(NodeId(FLEET, HUB), public_key(), not_before=NOW, not_after=until + timedelta(days=1))
    assert leaf.not_valid_after_utc == until
    far = RegionCa.create(ca, "west", not_before=NOW, not_after=NOW + timedelta(days=36500))
    assert far.certificate.not_valid_after_utc == ca.certificate.not_valid_after_utc


def test_a_region_names_no_further_hosts(region: RegionCa) -> None:
    with pytest.raises(RuntimeError, match="alone"):
        region.issue(
            NodeId(FLEET, HUB), public_key(), not_before=NOW, not_after=LATER, dns_names=["cloud-1.control.example"]
        )


def test_what_is_shown_is_no_anchor_and_is_bounded(region: RegionCa) -> None:
    leaf = region.issue(NodeId(FLEET, HUB), public_key(), not_before=NOW, not_after=LATER)
    other = Authorities([FleetCa.create(FLEET, NOW).certificate])
    with pytest.raises(BadCertificateError, match="not valid"):
        other.verify(leaf, NOW, [region.certificate, region.root])
    with pytest.raises(BadCertificateError, match="at most 2"):
        other.verify(leaf, NOW, [region.certificate] * 3)
    with pytest.raises(BadCertificateError, match="not a certificate in PEM"):
        other.prove_pem(b"rubbish", NOW)
    with pytest.raises(BadCertificateError, match="at most"):
        other.prove_pem(b"", NOW, b"0" * 70_000)


def test_a_node_shows_its_region_along(ca: FleetCa, region: RegionCa, tmp_path: Path) -> None:
    made = write_node(tmp_path, region, NodeId(FLEET, HUB), not_before=NOW, not_after=LATER)
    again = NodeCredentials.load(tmp_path)
    assert again.certificate_der == made.certificate_der
    assert again.intermediates == region.chain
    trust = Authorities([ca.certificate])
    assert trust.verify_der(again.certificate_der, NOW, again.intermediates_der)[0].path == HUB


def test_authorities_are_kept_in_files(ca: FleetCa, region: RegionCa, tmp_path: Path) -> None:
    ca.save(tmp_path / "ca")
    region.save(tmp_path / "region")
    assert FleetCa.load(tmp_path / "ca").certificate == ca.certificate
    loaded = RegionCa.load(tmp_path / "region")
    assert (loaded.region, loaded.root, loaded.chain) == ("midwest", ca.certificate, region.chain)
    with pytest.raises(CaFilesError, match="fleet's root"):
        FleetCa.load(tmp_path / "region")
    with pytest.raises(CaFilesError, match="region's certificate"):
        RegionCa.load(tmp_path / "ca")
    (tmp_path / "region" / "ca.key").write_bytes((tmp_path / "ca" / "ca.key").read_bytes())
    with pytest.raises(CaFilesError, match="not the key"):
        RegionCa.load(tmp_path / "region")


def test_scopes(ca: FleetCa, region: RegionCa) -> None:
    assert authority_scope(ca.certificate) == Scope(FLEET)
    assert authority_scope(region.certificate) == Scope(FLEET, "midwest")
    leaf = region.issue(NodeId(FLEET, HUB), public_key(), not_before=NOW, not_after=LATER)
    assert authority_scope(leaf) is None


def test_a_proof_is_kept_for_as_long_as_it_holds(
    ca: FleetCa, region: RegionCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verified once; asked at another time, or with another chain, it is verified again."""
    leaf = region.issue(NodeId(FLEET, HUB), public_key(), not_before=NOW + HOUR, not_after=LATER)
    trust, verified = Authorities([ca.certificate]), []

    def counted(*arguments: Any) -> Any:
        verified.append(arguments)
        return verify_certificate(*arguments)

    monkeypatch.setattr(authorities, "verify_certificate", counted)
    for at in (NOW + HOUR, NOW + HOUR, LATER):
        assert trust.verify(leaf, at, region.chain).path == HUB
    assert len(verified) == 1
    for at in (NOW, LATER + HOUR):
        with pytest.raises(BadCertificateError, match="not valid"):
            trust.verify(leaf, at, region.chain)
    with pytest.raises(BadCertificateError, match="not valid"):
        trust.verify(leaf, NOW + HOUR)
    monkeypatch.setattr(authorities, "MAX_PROOFS_KEPT", 1)
    trust.verify(leaf, NOW + HOUR, [*region.chain, ca.certificate])
    assert len(trust._proofs) == 1
