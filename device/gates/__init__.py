"""The local gates: what the hardware itself says for or against an update, each read from its real source."""
