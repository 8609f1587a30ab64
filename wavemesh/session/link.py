"""Sessions over gRPC: the child's end in ``upstream.py``, the parent's in ``downstream.py``, one pump for both."""

from wavemesh.session.downstream import DownstreamOptions, SessionDownstream
from wavemesh.session.upstream import SessionUpstream, UpstreamOptions

__all__ = ["DownstreamOptions", "SessionDownstream", "SessionUpstream", "UpstreamOptions"]
