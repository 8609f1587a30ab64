"""What a rollout may do: the policy file, the gates, windows in time and versions."""
