"""Who may call what: one row for every RPC of the mesh, one column for every tier that serves.

The rows are written by hand and compared with the proto descriptors: an RPC without a row, or a row without an RPC,
fails. From a row follow the expected answer to each caller and the table in ``docs/security.md``, which
``python -m tests.security.matrix`` writes anew.
"""

from __future__ import annotations

import enum
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import wavemesh.v1

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.descriptor import MethodDescriptor


PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- matrix: written by `python -m tests.security.matrix` -->\n", "<!-- end of matrix -->\n"


class Tier(enum.Enum):
    """Who serves, and where it stands in the tree that the callers below stand in."""

    CONTROL = "control/cloud-1"
    SUPER_HUB = "region/midwest"
    STORE_HUB = "region/midwest/store/store-20"

    @property
    def path(self) -> str:
        return self.value

    @property
    def title(self) -> str:
        return self.name.lower().replace("_", " ")


class Caller(enum.Enum):
    """A node with a good certificate. Names next door begin like the own ones, those elsewhere end like them."""

    CONTROL = "control/cloud-2"
    OPERATOR = "operator/alice"
    SUPER_HUB = "region/midwest"
    SUPER_HUB_NEXT_DOOR = "region/midwest-2"
    STORE_HUB = "region/midwest/store/store-20"
    STORE_HUB_NEXT_DOOR = "region/midwest/store/store-209"
    STORE_HUB_ELSEWHERE = "region/midwest-2/store/store-20"
    DEVICE = "region/midwest/store/store-20/device/pos-01"
    DEVICE_NEXT_DOOR = "region/midwest/store/store-209/device/pos-01"
    DEVICE_ELSEWHERE = "region/midwest-2/store/store-20/device/pos-01"


class Who(enum.Enum):
    """Whom an RPC is for at one tier."""

    NOBODY = "not served"
    NODES = "every node"
    CHILDREN = "its children"
    OPERATORS = "operators"
    SENT_ON = "operators, sent on"


class Answer(enum.Enum):
    """What a caller gets."""

    SERVED = "served"
    SENT_ON = "sent on to control or to a hub"
    FORBIDDEN = "PERMISSION_DENIED"
    ABSENT = "UNIMPLEMENTED"
    NO_CONNECTION = "no connection"


CHILDREN: Mapping[Tier, frozenset[Caller]] = {
    Tier.CONTROL: frozenset({Caller.SUPER_HUB, Caller.SUPER_HUB_NEXT_DOOR}),
    Tier.SUPER_HUB: frozenset({Caller.STORE_HUB, Caller.STORE_HUB_NEXT_DOOR}),
    Tier.STORE_HUB: frozenset({Caller.DEVICE}),
}
_CHILDREN_TEXT = {
    Tier.CONTROL: "super hubs",
    Tier.SUPER_HUB: "store hubs of its region",
    Tier.STORE_HUB: "devices of its store",
}

_BOTH = (Who.OPERATORS, Who.NOBODY, Who.OPERATORS)
_CONTROL_ONLY = (Who.OPERATORS, Who.NOBODY, Who.SENT_ON)
_HUB_ONLY = (Who.SENT_ON, Who.NOBODY, Who.OPERATORS)
_PROBES = (Who.NODES, Who.NODES, Who.NODES)

# At control, at a super hub, at a store hub.
ROWS: Mapping[str, tuple[Who, Who, Who]] = {
    "wavemesh.v1.SessionService/Connect": (Who.CHILDREN, Who.CHILDREN, Who.CHILDREN),
    "wavemesh.v1.ArtifactService/FindMissing": (Who.NOBODY, Who.CHILDREN, Who.CHILDREN),
    "wavemesh.v1.ArtifactService/Read": (Who.NOBODY, Who.CHILDREN, Who.CHILDREN),
    "wavemesh.v1.ArtifactService/Offer": (Who.NOBODY, Who.CHILDREN, Who.NOBODY),
    "wavemesh.v1.OperatorService/SubmitIntent": _BOTH,
    "wavemesh.v1.OperatorService/ListIntents": _BOTH,
    "wavemesh.v1.OperatorService/PlanWave": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/ListWaves": _BOTH,
    "wavemesh.v1.OperatorService/GetWave": _BOTH,
    "wavemesh.v1.OperatorService/WatchWave": _BOTH,
    "wavemesh.v1.OperatorService/GetLedger": _BOTH,
    "wavemesh.v1.OperatorService/ListDevices": _BOTH,
    "wavemesh.v1.OperatorService/GetDevice": _BOTH,
    "wavemesh.v1.OperatorService/GetDeviceLogs": _HUB_ONLY,
    "wavemesh.v1.OperatorService/GetFleetStatus": _BOTH,
    "wavemesh.v1.OperatorService/ListCache": _HUB_ONLY,
    "wavemesh.v1.OperatorService/PublishRelease": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/ListReleases": _BOTH,
    "wavemesh.v1.OperatorService/SetHold": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/ApplyInventory": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/ListAudit": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/RevokeNode": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/ListRevocations": _BOTH,
    "wavemesh.v1.OperatorService/CancelIntent": _BOTH,
    "wavemesh.v1.OperatorService/PreviewIntent": _BOTH,
    "wavemesh.v1.OperatorService/GetIntent": _BOTH,
    "wavemesh.v1.OperatorService/ListStores": _BOTH,
    "wavemesh.v1.OperatorService/GetStore": _BOTH,
    "wavemesh.v1.OperatorService/ListCohorts": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/ListPolicies": _BOTH,
    "wavemesh.v1.OperatorService/GetPolicy": _BOTH,
    "wavemesh.v1.OperatorService/ListPermits": _BOTH,
    "wavemesh.v1.OperatorService/ListHolds": _BOTH,
    "wavemesh.v1.OperatorService/GetTrace": _BOTH,
    "wavemesh.v1.OperatorService/CreateEnrolment": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/ListNodes": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/ListDiscrepancies": _CONTROL_ONLY,
    "wavemesh.v1.OperatorService/PlanCache": _HUB_ONLY,
    # At a port of its own, where nobody has a certificate: tests/security/test_join_port.py.
    "wavemesh.v1.EnrolmentService/Join": (Who.NOBODY, Who.NOBODY, Who.NOBODY),
    "grpc.health.v1.Health/Check": _PROBES,
    # grpcio's own servicer does not have it.
    "grpc.health.v1.Health/List": (Who.NOBODY, Who.NOBODY, Who.NOBODY),
    "grpc.health.v1.Health/Watch": _PROBES,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _PROBES,
}


def methods() -> dict[str, MethodDescriptor]:
    """Every RPC by its full name, from the descriptors of the contract and of the two standard services."""
    names = [f"wavemesh.v1.{module.name}" for module in pkgutil.iter_modules(wavemesh.v1.__path__)]
    modules = [importlib.import_module(name) for name in names if name.endswith("_pb2")]
    return {
        f"{service.full_name}/{method.name}": method
        for module in (*modules, health_pb2, reflection_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def who(name: str, tier: Tier) -> Who:
    """Whom the RPC is for at that tier."""
    return ROWS[name][list(Tier).index(tier)]


def expected(name: str, tier: Tier, caller: Caller) -> Answer:
    """What that caller gets."""
    match who(name, tier):
        case Who.NOBODY:
            return Answer.ABSENT
        case Who.NODES:
            return Answer.SERVED
        case Who.CHILDREN:
            return Answer.SERVED if caller in CHILDREN[tier] else Answer.FORBIDDEN
        case Who.OPERATORS | Who.SENT_ON as kind:
            if caller is not Caller.OPERATOR:
                return Answer.FORBIDDEN
            return Answer.SENT_ON if kind is Who.SENT_ON else Answer.SERVED


def services(tier: Tier) -> set[str]:
    """Full names of the services of that tier."""
    return {name.split("/")[0] for name in ROWS if who(name, tier) is not Who.NOBODY}


def table() -> str:
    """The matrix in Markdown."""
    lines = ["| RPC | at control | at a super hub | at a store hub |", "|---|---|---|---|"]
    for name in ROWS:
        cells = (
            _CHILDREN_TEXT[tier] if who(name, tier) is Who.CHILDREN else f"{who(name, tier).value}" for tier in Tier
        )
        lines.append(f"| `{name.removeprefix('wavemesh.v1.')}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The text of a page with the matrix in it as it is now."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
