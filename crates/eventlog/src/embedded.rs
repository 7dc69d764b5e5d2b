//! The engine that runs in one data folder.
