//! Partition workers: read the log, decode, fan out, commit.
