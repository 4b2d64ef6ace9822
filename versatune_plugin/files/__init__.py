"""What is written and read: whole files, documents, cache, history, fingerprints of rows."""
