"""Which apps a store's registry has, and by what names: pure.

A tag is what a release says it is. Where two releases that may be used say the same tag, the younger one has it; a
digest names the same bytes in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.policy.versions import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wavemesh.trust.releases import App, ReleaseManifest
    from wavemesh.trust.statements import Digest


@dataclass(frozen=True, slots=True)
class Catalog:
    """The apps of releases: by repository, then by tag; and all blobs of a repository by SHA-256."""

    tags: Mapping[str, Mapping[str, ReleaseManifest]]
    blobs: Mapping[str, Mapping[str, Digest]]

    @property
    def repositories(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self.tags))

    def apps(self, repository: str) -> tuple[App, ...]:
        """The apps of a repository, one a tag; none where there is no such repository."""
        return tuple(one.app for one in self.tags.get(repository, {}).values() if one.app)


def catalog(releases: Iterable[ReleaseManifest]) -> Catalog:
    """The catalog of those releases; those without an app play no part."""
    tags: dict[str, dict[str, ReleaseManifest]] = {}
    blobs: dict[str, dict[str, Digest]] = {}
    for release in sorted(releases, key=lambda one: (one.signed_at, one.name)):
        if release.app is not None:
            tags.setdefault(release.app.repository, {})[release.app.tag] = release
            found = blobs.setdefault(release.app.repository, {})
            found.update({one.digest.sha256: one.digest for one in release.app.artifacts})
    return Catalog(tags, blobs)


def newest(releases: Iterable[ReleaseManifest], whole: Iterable[Digest]) -> tuple[tuple[str, App], ...]:
    """Of each repository the app of the highest version whose blobs are all here, and its release's name.

    Whoever runs it may pull it again at any time, with the WAN dark.
    """
    here, found = frozenset(whole), dict[str, "ReleaseManifest"]()
    for release in releases:
        if release.app is None or not here.issuperset(one.digest for one in release.app.artifacts):
            continue
        old = found.get(release.app.repository)
        if old is None or Version.parse(old.version) < Version.parse(release.version):
            found[release.app.repository] = release
    return tuple((found[name].name, app) for name in sorted(found) if (app := found[name].app) is not None)
