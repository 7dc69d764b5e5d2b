//! Simulated worlds (city, market, load) as clients of the real protocols.
