"""The store hub: schedules swaps, keeps the cache and the ledger of one store, with or without its WAN."""
