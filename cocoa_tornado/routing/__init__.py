"""The road of a message from a broker's batch to the devices: whom a record addresses, where it goes, what is done."""
