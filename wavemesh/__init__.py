"""What every tier of wavemesh shares: the wire, sessions, trust, identity, artifacts, policy and the runtime."""

__version__ = "0.1.0"
