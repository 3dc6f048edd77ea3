"""From a broker's batch to the devices: which devices a record addresses, where its messages go, when it is done."""
