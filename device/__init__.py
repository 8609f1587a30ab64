"""The device tier: the agent that swaps slots and rolls back, and the supervisor that plays board and bootloader."""
