"""Who nodes are and how they prove it: SPIFFE ids, certificates, credentials, the fleet's CA."""
