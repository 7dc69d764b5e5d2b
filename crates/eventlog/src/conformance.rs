//! The suite that every engine of the log must pass.
