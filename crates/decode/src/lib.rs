//! Payload to readings and rejects; pure.
