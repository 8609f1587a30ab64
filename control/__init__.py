"""The control plane: plans waves, signs orders and permits, keeps ledgers, answers operators."""
