"""What touches the machine: clock, disk, database, configuration, gRPC servers and channels."""
