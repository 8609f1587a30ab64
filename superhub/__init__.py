"""The super hub: seeds one region's store hubs and speaks for them to control."""
