"""What a store's registry has under which name, and which app is kept (O5, H1)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from storehub.apps import catalog, newest
from wavemesh.trust.releases import OCI_MANIFEST, UNKNOWN_DIGEST, App, Artifact, ReleaseManifest
from wavemesh.trust.statements import Digest

BEGIN = datetime(2026, 5, 1, tzinfo=UTC)


def release(
    name: str, version: str, tag: str, *shared: str, hours: int = 0, repository: str = "pos"
) -> ReleaseManifest:
    root = Artifact(f"{name}.oci", Digest(name.encode().hex().ljust(64, "0"), 9))
    blobs = tuple(Digest(one * 64, 5) for one in shared)
    return ReleaseManifest(
        name=name,
        version=version,
        device_class="pos",
        hardware_revisions=("r1",),
        signed_at=BEGIN + timedelta(hours=hours),
        firmware=None,
        config=None,
        signature=Artifact(f"{name}.sig", UNKNOWN_DIGEST),
        app=App(repository, tag, OCI_MANIFEST, root, blobs),
    )


def digests(one: ReleaseManifest) -> list[Digest]:
    assert one.app is not None
    return [artifact.digest for artifact in one.app.artifacts]


def test_a_tag_that_two_releases_say_is_the_younger_ones() -> None:
    old, young = release("a", "1.0.0", "stable", "1"), release("b", "2.0.0", "stable", "2", hours=1)
    for given in ([old, young], [young, old]):
        found = catalog(given)
        assert found.tags["pos"]["stable"] == young
        assert set(found.blobs["pos"].values()) == {*digests(old), *digests(young)}
    assert found.repositories == ("pos",)
    assert found.apps("none") == ()


def test_the_newest_app_that_is_whole_is_kept_of_each_repository() -> None:
    old, new = release("a", "1.9.0", "1.9", "1", "2"), release("b", "1.10.0", "1.10", "1", "3")
    other = release("c", "0.1.0", "x", "4", repository="scan")
    here = [*digests(old), *digests(new), *digests(other)]
    assert [name for name, _ in newest([old, new, other], here)] == ["b", "c"]
    here.remove(Digest("3" * 64, 5))
    assert [name for name, _ in newest([new, old, other], here)] == ["a", "c"]
