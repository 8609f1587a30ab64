"""Programs that write what follows from other files: stubs, reference pages, the lock. Not part of the product."""
