"""Topics and files of other people's shape, read as hone's records by a mapping (`configs/streams.toml`)."""
