"""One module per benchmark. Their paths appear in the log lines that users' tools read."""
