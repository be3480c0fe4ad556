"""The parts of the training loop behind `edgekit.train`."""
