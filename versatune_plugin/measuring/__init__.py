"""What is measured: losses on held-out rows and training batches, detection, references."""
